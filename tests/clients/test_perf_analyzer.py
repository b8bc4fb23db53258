"""perf_analyzer, which measures servers like this one: it must read what it needs, run, and end with its summary.

run.py says where it is, and why not where it is not: then this file is not asked. How fast it goes is not looked at.
"""

import os
import re
import subprocess

import pytest

REQUESTS = 200


@pytest.mark.parametrize("ways", [
    ["-i", "http"],
    ["-i", "grpc"],
    ["-i", "grpc", "--streaming"],
    ["-i", "http", "--async"],
    ["-i", "http", "--input-tensor-format", "json", "--output-tensor-format", "json"],
], ids=" ".join)
def test_perf_analyzer(gate, ways):
    command = [os.environ["PERF_ANALYZER"], "-m", "mlp_4_16_3", "-u", gate.address, *ways,
               "--request-count", str(REQUESTS), "--concurrency-range", "4"]
    result = subprocess.run(command, timeout=300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    # Its own count, and what it reads of the server's statistics.
    for line in (r"Request count: (\d+)", r"Inference count: (\d+)", r"Execution count: (\d+)"):
        found = re.search(line, result.stdout)
        assert found and int(found[1]) > 0, result.stdout
    # The last line is the summary.
    assert re.search(r"Concurrency: 4, throughput: [\d.]+ infer/sec, latency \d+ usec\s*$", result.stdout), result.stdout
