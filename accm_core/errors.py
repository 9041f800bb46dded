"""The errors that accm raises on purpose; each message says what is wrong and what to do."""


class AccmError(Exception):
    """Base of every error that is the input's or the user's, not the program's."""


class ParamsError(AccmError, ValueError):
    """A parameter is unknown, out of range, or does not suit this recording."""


class RecordingError(AccmError, ValueError):
    """A recording cannot be sorted as it is."""


class NwbError(AccmError, ValueError):
    """An NWB file cannot be read or written as asked."""


class ModelError(AccmError, ValueError):
    """A model cannot be read, stored, trained or used as asked."""
