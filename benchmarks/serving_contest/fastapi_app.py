"""The network served as FastAPI's tutorials and most articles would do it: ``async def`` routes.

The file is opened by uvicorn as it stands: ``uvicorn fastapi_app:app``. GRAPH_FP32 and GRAPH_UINT8
name the ONNX files, LABELS the classes.
"""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, Request, Response, UploadFile
from PIL import Image

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
THREADS = 1


def open_session(path: str) -> onnxruntime.InferenceSession:
    """A session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


app = FastAPI()
fp32 = open_session(os.environ["GRAPH_FP32"])
uint8 = open_session(os.environ["GRAPH_UINT8"])
labels = Path(os.environ["LABELS"]).read_text(encoding="utf-8").splitlines()
shape = fp32.get_inputs()[0].shape


@app.post("/fp32")
async def infer_fp32(request: Request) -> Response:
    """Logits of an array of float32."""
    images = np.frombuffer(await request.body(), np.float32).reshape(shape)
    (logits,) = fp32.run(None, {"images": images})
    return Response(logits.tobytes(), media_type="application/octet-stream")


@app.post("/uint8")
async def infer_uint8(request: Request) -> Response:
    """Logits of an array of uint8."""
    images = np.frombuffer(await request.body(), np.uint8).reshape(shape)
    (logits,) = uint8.run(None, {"images": images})
    return Response(logits.tobytes(), media_type="application/octet-stream")


@app.post("/classify")
async def classify(file: UploadFile) -> dict[str, Any]:
    """The five likeliest classes of an image."""
    image = Image.open(io.BytesIO(await file.read())).convert("RGB")
    (logits,) = fp32.run(None, {"images": preprocess(image)})
    powers = np.exp(logits[0] - logits[0].max())
    probabilities = powers / powers.sum()
    return {
        "predictions": [
            {
                "label": labels[index],
                "index": int(index),
                "probability": float(probabilities[index]),
            }
            for index in np.argsort(-probabilities)[:5]
        ]
    }


def preprocess(image: Image.Image) -> np.ndarray:
    """Do torchvision's Resize, CenterCrop, ToTensor and Normalize."""
    height, width = shape[2:]
    scale = round(height / 0.875) / min(image.size)
    size = [int(side * scale) for side in image.size]
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32)
    return ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
