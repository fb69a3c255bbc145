"""Serve a base, a merged directory, a checkpoint or several LoRA adapters over OpenAI's API.

python serve.py --model_path output-glm3/best --port 8000
python serve.py --model_path ChatGLM3-6B --lora spo=output-glm3/best --lora ad=output-ad/best
CHATGLM_API_KEY=secret python serve.py --model_path chatglm3-spo --host 0.0.0.0 --temperature 0

docs/serving.md describes the requests.
"""

import gc
import os
import sys
from collections.abc import Sequence

from errors import end_on_interrupt, run_program
from options.parser import refuse
from options.serve import ServeOptions, api_key, check_installed, open_note, parse_serve

if __name__ == "__main__":
    run_program(lambda: refuse(parse_serve()[1]))  # before torch is loaded
    run_program(check_installed)
    end_on_interrupt()
    gc.disable()  # imports leave no garbage, and the collector would take a fifth of their time

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all files are local

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # else DeepSpeed prints a guess
from generation.models import choose_device, choose_dtype
from serving.app import make_app
from serving.models import find_models
from serving.server import address_error, bind, make_server, process_note, run, url_of
from serving.service import Service
from training.guards import explain_full_memory


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the models of a command line until SIGTERM or Ctrl-C."""
    options, problems = parse_serve(argv)
    refuse(problems)
    device = choose_device(options.model.device)
    found = find_models(options)
    for note in [*found.base.notes, *open_note(options.server)]:
        print(note, file=sys.stderr)
    host, port = options.server.host, options.server.port
    with bind(host, port, options.limits.request_timeout) as listener:
        service = Service(options.limits, found.load(options, device))
        app = make_app(service, api_key(options.server))
        names = list(service.models.by_name)
        server = make_server(app, announcement(options, names, url_of(listener), device))
        try:
            run(server, listener, service.drain)
        except OSError as error:
            raise address_error(host, port, error) from None
        finally:
            service.models.close()


def announcement(options: ServeOptions, names: Sequence[str], url: str, device: torch.device) -> str:
    """Where the server listens, what it serves, and how to try it."""
    precision = str(choose_dtype(options.model.precision, device)).removeprefix("torch.")
    key = "" if api_key(options.server) is None else " -H 'Authorization: Bearer KEY'"
    body = f'{{"model": "{names[0]}", "messages": [{{"role": "user", "content": "你好"}}], "temperature": 0}}'
    return (
        f"Serving {', '.join(names)} at {url}/v1 on {device.type} in {precision}; {process_note()}\n"
        f"Try: curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    )


if __name__ == "__main__":
    gc.freeze()  # what was imported stays
    gc.enable()
    gpu = "lower --max_num_seqs or --max_model_len, or give --quantization_bit 8 or 4"
    run_program(explain_full_memory(main, GPU=gpu, host="give --precision bf16, or end other programs"))
