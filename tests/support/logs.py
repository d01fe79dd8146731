"""What was logged in a test."""


def records(caplog):
    """Each once: pytest hands it on from the logger and from the root where a test lets the logger propagate."""
    return list({id(record): record for record in caplog.records}.values())
