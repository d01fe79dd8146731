"""results/README.md follows from the tables in results/ and the tests' golden files."""

from scripts.dev import claims

TABLE = """# A study

| method        | network | teacher  | last epoch   | (best)  | gain   | published | runs | protocol |
|---------------|---------|----------|--------------|---------|--------|-----------|------|----------|
| teacher       | wide    |          | 70.00        | (70.00) |        |           | 1    | [1]      |
| student alone | small   |          | 60.00        | (60.00) |        | 60.25     | 1    | [2]      |
| hint          | small   | wide 70  | 57.50 ± 0.10 | (58.00) | -2.50  | 57.25     | 2    | [2]      |
| kd+crd        | small   | wide 70  | 62.50 ± 0.10 | (63.00) | +2.50  |           | 2    | [2]      |
| kd, cls 2     | small   | wide 70  | 50.00        | (50.00) |        |           | 1    | [1]      |

Protocol [1]: cifar100, 10 epochs, batch 64, few_ratio 0.1.

Protocol [2]: cifar100, 240 epochs, batch 64.
"""


def test_the_page_is_in_step_with_the_files():
    assert (claims.RESULTS / "README.md").read_text() == claims.page(), "run python scripts/dev/claims.py"


def test_a_table_is_read_with_its_losses(tmp_path):
    (tmp_path / "study.md").write_text(TABLE)
    alone, hint, both, kd = found = claims.studies(tmp_path / "study.md")
    assert (hint.method, hint.gain, hint.epochs, hint.complete) == ("fitnet", -2.5, 240, True)
    assert (alone.method, alone.gain, alone.full, kd.full) == ("vanilla", None, True, False)
    assert (both.method, both.label, kd.gain, kd.epochs, kd.complete) == ("", "kd+crd", None, 10, False)
    assert claims.losing(found) == (
        "1 of 2 measured settings made the student worse: hint (wide 70 → small) **[-2.50](study.md)**."
    )
    header, rows = claims.claims(found)
    by_name = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert by_name["hint"]["full protocol: gain"] == "**[-2.50](study.md)**"
    assert by_name["kd"]["short study: gain"] == "[no student alone](study.md)"
    assert by_name["crd"]["full protocol: gain"] == ""
    assert by_name["kd"]["golden"] == "[losses](../tests/golden/losses.json)" and by_name["dml"]["golden"] == ""
    full = [claims.cells(line) for line in claims.beside_published(found).splitlines() if "study.md" in line]
    assert [row[2:] for row in full] == [
        ["60.00", "60.25", "-0.25", "1"],
        ["57.50 ± 0.10", "57.25", "+0.25", "2"],
        ["62.50 ± 0.10", "", "", "2"],
    ]
    assert claims.beside_published([kd]) == ""
    (tmp_path / "other.md").write_text("| student | top-1 |\n|---|---|\n| kd | 3 |\n")
    assert claims.studies(tmp_path / "other.md") == []


def test_names_lead_to_methods():
    names = ("hint", "mlkd_batch_correlation", "factor_transfer", "ofa", "label_free", "hsakd_student")
    assert [claims.meant(name) for name in names] == ["fitnet", "mlkd", "ft", "ofa_kd", "", "hsakd"]
