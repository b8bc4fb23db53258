"""A real Prometheus scrapes the server and answers what dashboards ask; promtool has nothing to say about our own page.

run.py says where they are, and why not where they are not: then this file is not asked.
"""

import json
import math
import os
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request

import pytest

from gate import HERE, PATIENCE, Gate

CONFIG = """\
global: {{ scrape_interval: 1s }}
scrape_configs:
  - job_name: sluicegate
    static_configs: [{{ targets: ["{admin}"] }}]
"""
# 4 numbers in, 3 out; its first axis is free.
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [0.5] * 8}]}).encode()
# Of the contract: what dashboards made for Triton ask, and what ours ask. Each has to come to a number above zero.
QUERIES = [
    "rate(nv_inference_request_duration_us[1m]) / rate(nv_inference_request_success[1m])",
    "rate(nv_inference_count[1m]) / rate(nv_inference_exec_count[1m])",
    "rate(nv_inference_queue_duration_us[1m]) / rate(nv_inference_request_success[1m])",
    "sum by (model) (rate(nv_inference_request_success[1m]))",
    "sum(rate(sluicegate_calls_total{code=\"ok\"}[1m]))",
    "histogram_quantile(0.99, sum by (le, route) (rate(sluicegate_call_duration_seconds_bucket[1m])))",
    "rate(sluicegate_batch_size_sum[1m]) / rate(sluicegate_batch_size_count[1m])",
    "sluicegate_config_reload_success",
    "process_resident_memory_bytes",
    "sum(rate(sluicegate_connections_total{outcome=\"accepted\"}[1m]))",
]


def get(url, headers=None):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=PATIENCE) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    server = Gate(HERE / "config" / "metrics.yaml", tmp_path_factory.mktemp("metrics") / "log")
    server.admin = re.search(r"http://(127\.0\.0\.1:\d+)  /metrics", server.printed())[1]
    yield server
    server.stop()


@pytest.fixture(scope="module")
def prometheus(shown, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yml").write_text(CONFIG.format(admin=shown.admin))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [os.environ["PROMETHEUS"], f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
               f"--web.listen-address={address}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(PATIENCE)


def ask(prometheus, query):
    url = f"{prometheus}/api/v1/query?query={urllib.parse.quote(query)}"
    try:
        answer = json.loads(get(url))
    except OSError:
        # It has not started yet.
        return []
    assert answer["status"] == "success", answer
    return [(series["metric"], float(series["value"][1])) for series in answer["data"]["result"]]


def call(shown):
    request = urllib.request.Request(f"{shown.url}/v2/models/mlp_4_16_3/infer", data=BODY,
                                     headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        answer.read()


def test_prometheus_answers_what_dashboards_ask(shown, prometheus):
    started = time.monotonic()
    wanted = list(QUERIES)
    # A rate is there once it was scraped twice while calls came in.
    while wanted:
        for _ in range(20):
            call(shown)
        wanted = [query for query in wanted
                  if not any(value > 0 and not math.isnan(value) for _, value in ask(prometheus, query))]
        assert time.monotonic() - started < PATIENCE, f"no answer to {wanted}"
        time.sleep(0.2)
    # Two rows in each call, and Triton counts rows.
    metric, count = ask(prometheus, "nv_inference_count{model=\"mlp_4_16_3\"}")[0]
    assert metric["__name__"] == "nv_inference_count" and count >= 40
    up = ask(prometheus, "up{job=\"sluicegate\"}")
    assert [value for _, value in up] == [1.0]


def test_it_scrapes_openmetrics_and_is_told_no_lie(shown):
    accept = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5"
    page = get(f"http://{shown.admin}/metrics", {"accept": accept})
    assert page.endswith("# EOF\n") and "\nnv_inference_count{" in page


def test_promtool_is_content(shown):
    call(shown)
    page = get(f"http://{shown.admin}/metrics")
    command = [os.environ["PROMTOOL"], "check", "metrics"]
    result = subprocess.run(command, input=page, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    # Triton's names are what they are; promtool would have them otherwise. Of ours it has nothing to say.
    ours = [line for line in result.stdout.splitlines() if not line.startswith("nv_")]
    assert ours == [] and "error" not in result.stdout, result.stdout
    own = "".join(line for line in page.splitlines(True) if "nv_" not in line)
    result = subprocess.run(command, input=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert (result.returncode, result.stdout) == (0, "")
