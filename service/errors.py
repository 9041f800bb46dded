"""What the service refuses, with the status to answer."""


class ServiceError(Exception):
    """A request that cannot be met: what is wrong, the value, the limit and the remedy.

    Parameters
    ----------
    status : int
        HTTP status, 400 to 599.
    message : str
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
