"""memory/gathering.py: the weights that ZeRO-3 has gathered, moment by moment."""

from dataclasses import replace

from memory.gathering import gather
from parameters import Parameter
from tests.shapes import SETUP, model


def test_what_zero3_has_gathered():
    parameters = [Parameter("word_embeddings.weight", (10,), False)]
    parameters += [Parameter(f"layers.{i}.weight", (100,), True) for i in range(4)]
    parameters.append(Parameter("output_layer.weight", (10,), False))
    setup = replace(SETUP, stage=3, ranks=2, prefetch_bucket_size=200, persistence_threshold=0)
    _, sizes = model("glm3", "lora", "small")
    gathered = gather(parameters, sizes, setup, lowest=0, embedding_again=False)
    assert gathered.start == 420  # asked for at once; then the first buffer beside its copies, then the second one
    assert gathered.forward == [(2, 210 + 420), (4, 200 + 200 + 210), (4, 400 + 10 + 10)]
    assert gathered.backward == [100, 200, 300, 400, 410]  # what backward has come through is given back
    assert gather(parameters, sizes, replace(setup, on_gpu=False), lowest=0, embedding_again=True).start == 840
    small = gather(parameters, sizes, replace(setup, persistence_threshold=10), lowest=0, embedding_again=False)
    assert small.start == 400 and small.backward[-1] == 400
    narrow = gather(parameters, sizes, replace(setup, max_live_parameters=150), lowest=0, embedding_again=False)
    assert narrow.start == 250 and narrow.backward == [100, 200, 250, 250, 250]
    assert gather(parameters, sizes, replace(setup, ranks=1), lowest=0, embedding_again=False).start == 0
