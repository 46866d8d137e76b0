"""What a device can do at best: the hundred per cent of model-FLOP utilisation."""

from __future__ import annotations

import time

import torch

SHEETS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "L40S": 362e12, "A100": 312e12}
"""FLOPs a second of dense bfloat16 products, from NVIDIA's data sheets (SXM)."""
SIDE = {"cpu": 1024, "cuda": 8192}
MEASURED_S = 0.2


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """FLOPs a second, and where the number is from: the data sheet of a known GPU in bf16, else the fastest of several large matrix
    products on this device with this process's threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    sheet = next((flops for model, flops in SHEETS.items() if model in name), None)
    if sheet is not None and precision == "bf16":
        return sheet, f"data sheet of {name}"
    side = SIDE.get(device.type, SIDE["cpu"])
    matrix = torch.ones(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    float((matrix @ matrix)[0, 0])  # the first one waits for libraries to be loaded
    fastest, started = float("inf"), time.monotonic()
    while time.monotonic() - started < MEASURED_S:
        begun = time.monotonic()
        product = matrix @ matrix
        float(product[0, 0])  # waits for the device
        fastest = min(fastest, time.monotonic() - begun)
    return 2 * side**3 / fastest, f"a {side} x {side} matrix product in {precision}, measured"
