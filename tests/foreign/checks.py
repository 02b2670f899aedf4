"""What the Python clients share: the surroundings that tests/foreign.rs gives, and the list of checks."""

import json
import os
import sys
import time
import traceback

HOST = "localhost"
PORT = int(os.environ["FOREIGN_PORT"])  # lets everybody in
LOGIN_PORT = int(os.environ["FOREIGN_LOGIN_PORT"])  # wants the user name and password below
TLS_PORT = int(os.environ["FOREIGN_TLS_PORT"])  # wants the certificate below
USER, PASSWORD = "press", "right"
CA, CERT, KEY = (os.environ[f"FOREIGN_{name}"] for name in ("CA", "CERT", "KEY"))
CERTIFIED = "gw-01"  # whom the certificate names
MANY = 1000  # publishes handed over at once
IN_FLIGHT = 200  # of them unacknowledged; these clients do not look at the Receive Maximum of CONNACK
LARGE = 200_000  # bytes
AWAITED = os.environ.get("FOREIGN_AWAITED", "").split()


def topic(machine):
    return f"foreign/{machine}/x"


def event_topic(machine):
    return f"test/plant/foreign.event/v1/{machine}"


def payload(machine, number, fill=0):
    return json.dumps({"id": f"{machine}-{number}-{time.time_ns()}", "n": number, "fill": "x" * fill})


def number(event):
    return json.loads(event)["data"]["n"]


class Checks:
    """Runs checks one by one; each prints `ok NAME` or `FAIL NAME reason`."""

    def __init__(self):
        self.has_failed = False
        self.patience = 0

    def begin(self, name):
        self.patience = 1 if name in AWAITED else 20

    def end(self, name, error=None):
        if error is None:
            print(f"ok {name}", flush=True)
        else:
            self.has_failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"FAIL {name} {reason}", flush=True)
            traceback.print_exception(error, file=sys.stderr)

    def exit(self):
        sys.exit(1 if self.has_failed else 0)
