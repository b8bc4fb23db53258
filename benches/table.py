#!/usr/bin/env python3
"""The whole table of what Sluicegate is held to, in one run: each row's figures, taken in turns, and the bar.

    make build && python3 benches/table.py            # some ten minutes
    python3 benches/table.py --only grpc,mid           # rows whose name begins so
    python3 benches/table.py --rounds 1 --seconds 0.3  # whether it works; such figures mean nothing

Every server has core 0 to itself while it is asked, and the generator (`sluicegate bench`) has core 1. What a row compares
takes turns within each round, who comes first changes, and the row tells the median of the rounds. Sluicegate has
identity by API key, a limit per identity, grants, metrics and the access log (to /dev/null) on; the servers in
`reference/` have none of it. All take the same V2 JSON or ModelInfer messages; those that speak REST are asked once
before anything is measured, and must answer the same bits. ONNX Runtime alone is `sluicegate bench --engine --bare`, on
core 0 too.

Prints a table in Markdown. With --json FILE, every single run goes into a file as well. Exits 1 if a bar is missed and
--strict is given.
"""

import argparse
import hashlib
import http.client
import json
import os
import pathlib
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import end_to_end
import models
from end_to_end import KEY, Spinners, fail, free_port, library, processor

ROOT = end_to_end.ROOT
WIDTHS = {"tiny": 4, "mid": 768}
# One model by several names, each of which says otherwise which calls of different lengths run together.
MIXED = {"bert": "auto", "bert-off": "off", "bert-double": "{ ratio: 2 }"}
# Words of a text, at least and at most.
LENGTHS = 8, 128
CONFIG = """\
version: 1
listen: [{{ address: "127.0.0.1:{port}" }}]
admin: {{ address: "127.0.0.1:{admin}" }}
auth: {{ api_keys: {{ file: keys.yaml }} }}
grants: [{{ to: ["identity:bench"], intents: [infer, inspect], models: ["*"], versions: ["*"] }}]
limits: {{ rate: [{{ name: plenty, by: identity, unit: calls, limit: 5000000/s, burst: 5000000 }}] }}
models: {{ directory: "{models}", probe: {probe} }}
runtime: {{ lanes: {lanes}, inference_cores: {lanes} }}
telemetry: {{ access_log: {{ enabled: true }} }}
"""


def configure(path, port, models, lanes, probe="auto"):
    """Writes a configuration with everything on, and the file of its one key beside it."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = f'version: 1\nkeys:\n  - {{ id: k_bench, hash: "sha256:{digest}", identity: bench }}\n'
    path.with_name("keys.yaml").write_text(keys)
    path.write_text(CONFIG.format(port=port, admin=free_port(), models=models, lanes=lanes, probe=probe))


class Server:
    """A process pinned to some cores, and where it listens."""

    def __init__(self, place, name, command, port, cores):
        self.name, self.port = name, port
        self.path = place.folder / f"{name}.log"
        self.started = time.monotonic()
        with open(os.devnull, "wb") as log_of_ours, open(self.path, "wb") as log:
            # The access log is written, and read by nobody.
            errors = log_of_ours if name.startswith("sluicegate") else log
            self.process = subprocess.Popen(
                ["taskset", "-c", cores, *map(str, command)],
                cwd=place.folder, stdout=subprocess.DEVNULL, stderr=errors,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "ORT_DYLIB_PATH": str(place.runtime)},
            )

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def wait(self):
        for _ in range(400):
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.025)
        shown = self.path.read_text(errors="replace")[-2000:] if self.path.exists() else ""
        fail(f"{self.name} does not listen:\n{shown}")

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer

    def ready(self, model, body):
        """Waits until it serves the model, and says what it answers to the bench's request."""
        for _ in range(400):
            status, answer = self.ask("POST", f"/v2/models/{model}/infer", body)
            if status == 200:
                output = json.loads(answer)["outputs"][0]
                return output["shape"], output["data"]
            time.sleep(0.05)
        fail(f"{self.name} answers {status}: {answer[:500]!r}")

    def memory(self, field):
        """Mebibytes: VmRSS now, VmHWM at most so far."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
        fail(f"{self.name} is gone")

    def stop(self):
        self.process.kill()
        self.process.wait()


class Place:
    """Where everything lies, and how to start and ask it."""

    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        target = arguments.target
        profile = "release" if arguments.profile == "release" else "debug"
        self.sluicegate = arguments.program or target / profile / "sluicegate"
        self.generator = target / profile / "sluicegate"
        self.reference = target / "reference" / profile
        self.runtime = library(target)
        self.models = target / "bench-models"
        self.mixed = target / "bench-models-mixed"
        # Of the models that are there, those which are asked: cores are divided among all that are served.
        self.served = folder / "served"
        self.asked = folder / "asked"
        self.servers, self.runs, self.without_stack = {}, [], None

    def server(self, name, model=None, lanes=1, models=None):
        """The server of this name, started once; `model` is for those that serve one, `models` the folder of the others."""
        key = f"{name}-{model}" if model else f"{name}-{models.name}-{lanes}" if models else f"{name}-{lanes}"
        if key not in self.servers:
            port, cores = free_port(), self.arguments.server_core
            if name in ("sluicegate", "without"):
                config = self.folder / f"{key}.yaml"
                configure(config, port, models or self.served, lanes)
                command = [self.sluicegate, "serve", "--config", config, "--onnxruntime", self.runtime, "--log-format", "json"]
                command = [self.without_stack, config, KEY] if name == "without" else command
                cores = f"{cores},{self.arguments.other_core}" if lanes == 2 else cores
            elif name == "bare":
                command = [self.reference / "bare", f"127.0.0.1:{port}"]
            else:
                model_file = self.models / model / "1/model.onnx"
                command = [self.reference / name, f"127.0.0.1:{port}", self.runtime, model_file, model]
            self.servers[key] = Server(self, key, command, port, str(cores)).wait()
        return self.servers[key]

    def body(self, model):
        """What a request to the model says."""
        return (self.asked / f"{model}.json").read_bytes()

    def bench(self, core, arguments):
        """What one run of the generator tells."""
        seconds = self.arguments.seconds
        command = ["taskset", "-c", str(core), self.generator, "bench", *arguments]
        command += ["--json", "--warmup", f"{int(min(1, seconds) * 1000)}ms", "--duration", f"{int(seconds * 1000)}ms"]
        environment = {**os.environ, "SLUICEGATE_KEY": KEY, "ORT_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        if done.returncode:
            fail(f"{' '.join(map(str, command))}: {done.stderr}{done.stdout}")
        run = json.loads(done.stdout)["runs"][0]
        if run["errors"]:
            fail(f"{run['source']} refused some of it: {run['errors']}")
        return run

    def ask(self, source):
        """One turn of what is measured: a server on a surface, or the session alone."""
        if "rows" in source:
            command = ["--engine", "--bare", "--config", self.folder / "bare.yaml", "--models", self.models]
            command += ["--onnxruntime", self.runtime, "--model", source["model"], "--rows", source["rows"]]
            return self.bench(self.arguments.server_core, command)
        mixed = source["model"] in MIXED
        models = self.mixed if mixed else None
        server = self.server(source["server"], source.get("own"), source.get("lanes", 1), models)
        command = [server.url, "--model", source["model"], "--surface", source["surface"], "--concurrency", source["callers"]]
        command += ["--spin"] if self.arguments.spin else []
        for place in range(source["callers"] if mixed else 1):
            body = f"mixed-{place}" if mixed else source.get("body", source["model"])
            command += ["--data", self.asked / f"{body}.json"]
        if "connections" in source:
            command += ["--connections", source["connections"]]
        return self.bench(self.arguments.client_core, command)


class Measured:
    """The medians of what was measured of one source."""

    def __init__(self, runs):
        self.runs = runs

    def median(self, value):
        return statistics.median(value(run) for run in self.runs)

    @property
    def rate(self):
        return self.median(lambda run: run["rows_per_second"])

    @property
    def p50(self):
        return self.median(lambda run: run["latency_us"]["p50"])

    @property
    def p99(self):
        return self.median(lambda run: run["latency_us"]["p99"])

    @property
    def tail(self):
        return self.median(lambda run: run["latency_us"]["p99"] / run["latency_us"]["p50"])


def ours(model, surface, callers, **more):
    return {"server": "sluicegate", "model": model, "surface": surface, "callers": callers, **more}


def theirs(server, model, surface, callers, **more):
    return {"server": server, "own": model, "model": model, "surface": surface, "callers": callers, **more}


def session(model, rows):
    return {"model": model, "rows": rows}


def ratio(wanted):
    def judge(first, second):
        found = first.rate / second.rate
        return f"≥ {wanted} ×", f"{found:.2f} ×", found >= wanted
    return judge


def latency(p50, p99):
    def judge(first, second):
        more = first.p50 - second.p50, first.p99 - second.p99
        found = f"p50 {more[0]:+.1f} µs, p99 {more[1]:+.1f} µs"
        return f"p50 ≤ +{p50} µs, p99 ≤ +{p99} µs", found, more[0] <= p50 and more[1] <= p99
    return judge


def over(millis):
    def judge(first, second):
        more = (first.p50 - second.p50) / 1000
        return f"p50 ≤ +{millis} ms", f"{more:+.3f} ms", more <= millis
    return judge


def apart(first, second):
    return "–", f"{(first.p50 - second.p50) / 1000:+.3f} ms", None


def tail(wanted):
    def judge(first, second):
        return f"p99 ≤ {wanted} × p50", f"{first.tail:.2f} × (there {second.tail:.2f} ×)", first.tail <= wanted
    return judge


def told(first, second):
    return "–", f"{first.rate / second.rate:.2f} ×", None


def rows(three_cores, stack):
    """Each row: its name, what it says, its sources (ours first), and how the first is judged by the second."""
    shared = {"connections": 8}
    yield "rest", "`tiny`, REST JSON, 64 connections", [
        ours("tiny", "rest", 64), theirs("reference", "tiny", "rest", 64)], ratio(1.5)
    yield "rest-floor", "the same, against hyper alone", [
        ours("tiny", "rest", 64), {**theirs("bare", "tiny", "rest", 64), "own": None}], told
    yield "rest-batcher", "the same, against a hand-written batcher", [
        ours("tiny", "rest", 64), theirs("batcher", "tiny", "rest", 64)], told
    if stack:
        yield "rest-stack", "the same, against the same program without the stack", [
            ours("tiny", "rest", 64), theirs("without", "tiny", "rest", 64)], ratio(0.9)
    yield "grpc", "`tiny`, gRPC, 8 connections × 8 streams", [
        ours("tiny", "grpc", 64, **shared), theirs("grpc", "tiny", "grpc", 64, **shared)], ratio(1.25)
    yield "websocket", "`tiny`, WebSocket, 64 in flight", [
        ours("tiny", "websocket", 64, **shared), theirs("websocket", "tiny", "websocket", 64, **shared)], ratio(1.2)
    yield "one-rest", "`tiny`, one caller, REST JSON", [
        ours("tiny", "rest", 1), theirs("reference", "tiny", "rest", 1)], latency(5, 20)
    yield "one-grpc", "`tiny`, one caller, gRPC", [
        ours("tiny", "grpc", 1), theirs("grpc", "tiny", "grpc", 1)], latency(5, 20)
    for surface, server in (("rest", "reference"), ("grpc", "grpc"), ("websocket", "websocket")):
        more = {} if surface == "rest" else shared
        yield f"tail-{surface}", f"tail, `tiny`, {surface}, 64 in flight", [
            ours("tiny", surface, 64, **more), theirs(server, "tiny", surface, 64, **more)], tail(1.6)
    yield "mid-rest", "`mid`, REST JSON, 64 callers", [ours("mid", "rest", 64), session("mid", 32)], ratio(0.85)
    yield "mid-batcher", "the same, against a batcher without a timer", [
        ours("mid", "rest", 64), theirs("batcher", "mid", "rest", 64)], told
    yield "mid-binary", "`mid`, binary HTTP, 64 callers", [ours("mid", "rest-binary", 64), session("mid", 32)], ratio(0.95)
    yield "mid-grpc", "`mid`, gRPC, 64 callers", [
        ours("mid", "grpc", 64, **shared), session("mid", 32)], ratio(0.95)
    yield "mid-one", "`mid`, one caller, REST JSON", [ours("mid", "rest", 1), session("mid", 1)], over(0.1)
    yield "mid-one-reference", "the same, against the hand-written server", [
        ours("mid", "rest", 1), theirs("reference", "mid", "rest", 1)], apart
    yield "mid-one-grpc", "`mid`, one caller, gRPC", [ours("mid", "grpc", 1), session("mid", 1)], over(0.1)
    yield "mixed-lengths", "`bert`, 64 callers with texts of 8 to 128 words, against padding off", [
        ours("bert", "rest", 64), ours("bert-off", "rest", 64)], ratio(2.0)
    yield "mixed-double", "the same, lengths within a factor of two together", [
        ours("bert-double", "rest", 64), ours("bert-off", "rest", 64)], told
    # Of what there is to do the generator does next to nothing: a call of so many rows is 2 ms of work.
    many = {"body": "mid-8"}
    yield "two-mid", "`mid`, binary HTTP, 8 rows a call, two cores against one" + (
        "" if three_cores else ", the generator on one of them"), [
        ours("mid", "rest-binary", 32, lanes=2, **many), ours("mid", "rest-binary", 32, **many)], ratio(1.8)
    if three_cores:
        yield "two-cores", "`tiny`, REST JSON, two cores against one", [
            ours("tiny", "rest", 64, lanes=2), ours("tiny", "rest", 64)], ratio(1.8)


def measure(place, sources, label):
    """The medians of each source: they take turns in every round, and who comes first changes."""
    runs = [[] for _ in sources]
    for number in range(place.arguments.rounds):
        turns = list(enumerate(sources))
        for index, source in turns if number % 2 == 0 else reversed(turns):
            run = place.ask(source)
            runs[index].append(run)
            place.runs.append({"row": label, **source, **run})
            print(f"  {label}: {run['source']}: {run['rows_per_second']:,.0f} rows/s", file=sys.stderr, flush=True)
    return [Measured(one) for one in runs]


def start(place, probe):
    """What three models cost, and how soon they answer."""
    repository = place.folder / "three"
    for name, model in (("tiny", "tiny"), ("mid", "mid"), ("other", "tiny")):
        (repository / name / "1").mkdir(parents=True, exist_ok=True)
        shutil.copy(place.models / model / "1/model.onnx", repository / name / "1/model.onnx")
    idle, peak, live, first = [], [], [], []
    for number in range(place.arguments.rounds):
        port, config = free_port(), place.folder / "three.yaml"
        configure(config, port, repository, lanes=1, probe=probe)
        command = [place.sluicegate, "serve", "--config", config, "--onnxruntime", place.runtime, "--log-format", "json"]
        server = Server(place, f"sluicegate-three-{number}", command, port, str(place.arguments.server_core))
        try:
            live.append(until(server, "GET", "/v2/health/live", None) * 1000)
            first.append(until(server, "POST", "/v2/models/mid/infer", place.body("mid")))
            until(server, "GET", "/v2/health/ready", None)
            time.sleep(0.5)
            idle.append(server.memory("VmRSS"))
            for model in ("tiny", "mid"):
                asked = [server.url, "--model", model, "--data", place.asked / f"{model}.json", "--concurrency", 64]
                place.bench(place.arguments.client_core, asked)
            peak.append(server.memory("VmHWM"))
        finally:
            server.stop()
    found = [statistics.median(values) for values in (idle, peak, first, live)]
    wanted = "≤ 100 MiB idle, ≤ 120 peak, first answer ≤ 0.2 s, live ≤ 30 ms"
    shown = f"{found[0]:.0f} MiB idle, {found[1]:.0f} peak, {found[2]:.2f} s, {found[3]:.0f} ms"
    met = all(value <= bar for value, bar in zip(found, (100, 120, 0.2, 30)))
    return [f"three models (57 MB of weights), `models.probe: {probe}`", "–", "–", wanted, shown, met]


def until(server, method, path, body):
    """Seconds since its start after which it answers 200."""
    while time.monotonic() - server.started < 30:
        try:
            if server.ask(method, path, body)[0] == 200:
                return time.monotonic() - server.started
        except OSError:
            pass
        time.sleep(0.001)
    fail(f"{server.name} does not answer {path}")


def figure(measured, row):
    if row.startswith(("one-", "mid-one", "tail-")):
        return f"p50 {measured.p50:,.1f} µs, p99 {measured.p99:,.1f} µs"
    return f"{measured.rate:,.0f}/s"


def build(arguments):
    command = ["cargo", "build", "--locked", "--quiet", "--bins", "--target-dir", str(arguments.target / "reference")]
    command += ["--release"] if arguments.profile == "release" else []
    if subprocess.run(command, cwd=ROOT / "benches/reference").returncode:
        fail("the reference servers do not build")


def build_without_stack(arguments):
    """Builds the same program without the stack; where it is."""
    command = ["cargo", "bench", "--no-run", "--locked", "--quiet", "--bench", "without_stack", "--message-format", "json"]
    command += ["--target-dir", str(arguments.target), "--profile", "bench" if arguments.profile == "release" else "dev"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    made = [json.loads(line) for line in done.stdout.splitlines()]
    made = [message["executable"] for message in made if message.get("target", {}).get("name") == "without_stack"]
    if done.returncode or not made:
        fail("the program without the stack does not build")
    return made[-1]


def prepare(place):
    """Models, requests, keys and the configuration of the session alone."""
    models.make(place.models)
    for model in WIDTHS:
        shutil.copytree(place.models / model, place.served / model)
    models.make(place.mixed, ("bert",))
    for name, pad in MIXED.items():
        folder = place.mixed / name
        if not folder.exists():
            shutil.copytree(place.mixed / "bert", folder)
        inputs = "{ input_ids: { pad: 0, mask: attention_mask } }"
        (folder / "model.yaml").write_text(f"inputs: {inputs}\nbatching: {{ pad: {pad} }}\n")
    source = random.Random(3)
    place.asked.mkdir()
    for name, width, count in [*((model, width, 1) for model, width in WIDTHS.items()), ("mid-8", WIDTHS["mid"], 8)]:
        data = [float(f"{source.random():.8g}") for _ in range(count * width)]
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [count, width], "data": data}]}
        (place.asked / f"{name}.json").write_text(json.dumps(body, separators=(",", ":")))
    for number in range(64):
        words = [source.randrange(1, 1000) for _ in range(source.randint(*LENGTHS))]
        inputs = [("input_ids", words), ("attention_mask", [1] * len(words))]
        inputs = [{"name": name, "datatype": "INT64", "shape": [1, len(words)], "data": data} for name, data in inputs]
        (place.asked / f"mixed-{number}.json").write_text(json.dumps({"inputs": inputs}, separators=(",", ":")))
    (place.folder / "bare.yaml").write_text("version: 1\nruntime: { lanes: 1, inference_cores: 1 }\n")


def same_bits(place, table):
    """All that speak REST answer the same; the generator checks first answers of the others by their shape."""
    if any(source["model"] in MIXED for _, _, sources, _ in table for source in sources):
        server, body = place.server("sluicegate", models=place.mixed), place.body("mixed-0")
        answers = [server.ready(model, body) for model in MIXED]
        if any(answer != answers[0] for answer in answers):
            fail("a call alone is answered differently with padding and without")
    for model in WIDTHS:
        names = {source["server"] for _, _, sources, _ in table for source in sources
                 if source.get("surface") == "rest" and source["model"] == model and source["server"] != "bare"}
        if names:
            answers = {
                name: place.server(name, None if name == "sluicegate" else model).ready(model, place.body(model))
                for name in names
            }
            if any(answer != answers["sluicegate"] for answer in answers.values()):
                fail(f"they answer differently for {model}: {answers}")
    ours = [source for _, _, sources, _ in table for source in sources
            if source.get("server") == "sluicegate" and source["model"] not in MIXED]
    for lanes in {source.get("lanes", 1) for source in ours}:
        for model in WIDTHS:
            place.server("sluicegate", lanes=lanes).ready(model, place.body(model))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose names begin so, by commas (all)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each source of a row (3)")
    parser.add_argument("--seconds", type=float, default=5, help="how long each turn lasts (5)")
    parser.add_argument("--awake", action="store_true", help="keep the cores from halting (for virtual machines)")
    parser.add_argument("--spin", action="store_true", help="let the generator never sleep: nobody is woken by an answer")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a bar is missed")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write every single run there")
    parser.add_argument("--stack", action="store_true", help="with a row against the program without the stack, which is built")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--second-core", type=int, default=2, help="the other core of the rows of two; the client's where it is not there (2)")
    parser.add_argument("--profile", choices=["release", "dev"], default="release", help="dev: to try this script")
    parser.add_argument("--program", type=pathlib.Path, help="the server that is measured, as `make pgo` makes one (the release binary)")
    parser.add_argument("--target", type=pathlib.Path, help="cargo's target directory (target/)")
    arguments = parser.parse_args()
    arguments.program = arguments.program and arguments.program.resolve()
    arguments.target = (arguments.target or pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))).resolve()
    for tool, how in [("taskset", "apt-get install util-linux"), ("cargo", "rustup")]:
        if not shutil.which(tool):
            fail(f"`{tool}` is missing; get it with `{how}`")
    cores = os.sched_getaffinity(0)
    arguments.other_core = arguments.second_core if arguments.second_core in cores else arguments.client_core
    if not {arguments.server_core, arguments.client_core} <= cores:
        fail("two cores are needed: one for the server, one for the generator")
    build(arguments)
    with tempfile.TemporaryDirectory(prefix="sluicegate-table-") as name:
        place = Place(arguments, pathlib.Path(name))
        for program in (place.sluicegate, place.generator):
            if not program.exists():
                fail(f"no {program}; make it with `make build`")
        if arguments.stack:
            place.without_stack = build_without_stack(arguments)
        prepare(place)
        wanted = tuple(filter(None, arguments.only.split(",")))
        chosen = lambda row: not wanted or row.startswith(wanted)
        table = [row for row in rows(arguments.second_core in cores, arguments.stack) if chosen(row[0])]
        lines, awake = [], {arguments.server_core, arguments.client_core} if arguments.awake else ()
        try:
            same_bits(place, table)
            with Spinners(awake):
                for row, what, sources, judge in table:
                    found = measure(place, sources, row)
                    figures = [figure(one, row) for one in found] + ["–"]
                    lines.append([what, figures[0], figures[1], *judge(*found)])
                for row, probe in (("start", "auto"), ("start-never", "never")):
                    if chosen(row):
                        lines.append(start(place, probe))
        finally:
            for server in place.servers.values():
                server.stop()
            if arguments.json:
                arguments.json.write_text(json.dumps(place.runs, indent=1) + "\n")
    show(lines, arguments, arguments.second_core in cores)
    return 1 if arguments.strict and any(line[5] is False for line in lines) else 0


def show(lines, arguments, three_cores):
    awake = ", cores kept awake" if arguments.awake else ""
    awake += ", a generator that never sleeps" if arguments.spin else ""
    print(f"{processor()}{awake}; medians of {arguments.rounds} rounds of {arguments.seconds:g} s\n")
    print("| work | sluicegate | held against | wanted | reached | met |\n|---|---|---|---|---|---|")
    for what, first, second, wanted, reached, met in lines:
        print(f"| {what} | {first} | {second} | {wanted} | {reached} | {'–' if met is None else 'yes' if met else '**no**'} |")
    if not three_cores:
        print("\nTwo cores for the server were not measured with `tiny`: that takes a third core, for the generator.")


if __name__ == "__main__":
    sys.exit(main())
