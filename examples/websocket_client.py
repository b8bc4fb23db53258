#!/usr/bin/env python3
"""Sends two requests over one WebSocket and takes the answers as they come: pip install websockets"""

import asyncio
import json
import sys
from pathlib import Path

import websockets

MODEL = Path(__file__).resolve().parent.parent / "models" / "digits"


async def main(address="127.0.0.1:8080"):
    image = json.loads((MODEL / "example.json").read_text())["inputs"]
    text = [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["gate", "sluice"]}]
    async with websockets.connect(f"ws://{address}/v1/ws", subprotocols=["sluicegate.v1"]) as socket:
        await socket.send(json.dumps({"type": "hello", "protocol": 1}))
        await socket.send(json.dumps({"type": "infer", "id": "digit", "model": "digits", "inputs": image}))
        await socket.send(json.dumps({"type": "infer", "id": "words", "model": "text_length", "inputs": text}))
        answers = {}
        while len(answers) < 2:
            message = json.loads(await socket.recv())
            if message["type"] in ("output", "error"):
                answers[message["id"]] = message
        for name in ("digit", "words"):
            message = answers[name]
            print(name, message["outputs"][0]["data"] if message["type"] == "output" else message["message"])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
