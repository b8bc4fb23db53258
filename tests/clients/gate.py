"""A server of its own for the tests: started on free ports, found by the address that it prints, stopped by SIGTERM."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODELS = ROOT / "tests" / "models" / "good"
# The program under test: run.py says which.
BINARY = os.environ.get("SLUICEGATE", str(ROOT / "target" / "debug" / "sluicegate"))
# What run.py installed.
MADE = Path(os.environ.get("CLIENTS_MADE", ROOT / "target" / "clients"))
# Seconds for what takes one or two on a machine that is not busy.
PATIENCE = 60


class Gate:
    """One server. Its output goes to a file beside `log`, so that it never waits for a reader."""

    def __init__(self, config, log):
        self.log = Path(log)
        with self.log.open("wb") as output:
            command = [BINARY, "serve", "--config", str(config)]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        started = time.monotonic()
        while not (found := re.search(r"http://(127\.0\.0\.1:\d+)  ", self.printed())):
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.printed()}")
            if time.monotonic() - started > PATIENCE:
                self.process.kill()
                raise RuntimeError(f"the server does not start:\n{self.printed()}")
            time.sleep(0.02)
        self.address = found[1]
        self.url = f"http://{self.address}"

    def printed(self):
        return self.log.read_text(errors="replace")

    def stop(self):
        """Stops it as an orchestrator does, and says what went wrong in it: nothing must have."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = "after SIGTERM was not heeded"
        bad = [line for line in self.printed().splitlines() if "panic" in line]
        if code != 0 or bad:
            raise RuntimeError("\n".join([f"the server ended with {code}", *bad[:20]]))
