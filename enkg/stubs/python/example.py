"""The least worker: each number is doubled."""

from enkg_worker import serve


def simulate(x):
    return 2 * x


if __name__ == "__main__":
    serve(simulate)
