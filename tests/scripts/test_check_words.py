"""Pages, messages and docstrings use plain words."""

from scripts.dev import check_words


def test_plain_words():
    assert list(check_words.found()) == []


def test_a_word_is_found_whatever_its_case():
    assert check_words.WORD.findall("Nobody goes on beside it") == ["Nobody", "goes on", "beside"]
    assert not check_words.WORD.findall("besides, a goal on the way")
