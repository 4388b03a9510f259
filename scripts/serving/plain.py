"""The endpoint that one writes first: FastAPI around the same model, each request its own forward pass.

    python plain.py MODEL PORT thread|loop

`thread` is FastAPI's own way for a function (a pool, so that forward passes run side by side), `loop` an async one (one
after the other). Which is faster depends on the machine, so `bench_serving.py` compares with the better one.
"""

from __future__ import annotations

import base64
import io
import sys

import torch
import torch.nn.functional as F
import uvicorn
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel
from transformers import CLIPModel, CLIPProcessor


class Body(BaseModel):
    input: str | dict[str, str]


def main(folder: str, port: str, kind: str) -> None:
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    app = FastAPI()

    def embed(asked: str | dict[str, str]) -> dict:
        with torch.inference_mode():
            if isinstance(asked, str):
                inputs = processor(text=[asked], return_tensors="pt", padding=True, truncation=True)
                found = model.get_text_features(**inputs)
            else:
                picture = Image.open(io.BytesIO(base64.b64decode(asked["image"]))).convert("RGB")
                found = model.get_image_features(**processor(images=picture, return_tensors="pt"))
            embeds = F.normalize(found.pooler_output, dim=-1)
        return {"data": [{"index": 0, "embedding": embeds[0].tolist()}]}

    if kind == "thread":
        app.post("/v1/embeddings")(_threaded(embed))
    else:
        app.post("/v1/embeddings")(_awaited(embed))
    app.get("/readyz")(lambda: {"status": "ready"})
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


def _threaded(embed):
    def answer(body: Body) -> dict:
        return embed(body.input)

    return answer


def _awaited(embed):
    async def answer(body: Body) -> dict:
        return embed(body.input)

    return answer


if __name__ == "__main__":
    main(*sys.argv[1:])
