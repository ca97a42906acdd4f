"""Training on votes: a LoRA on a model's layers, by the objectives of `samplers/preference`.

`trainer.py` is the loop; a step of it (`step.py`) works on the images of a vote set, with the outputs of a model that
`session.py` runs in the host's own sampling, with and without the products of `adapters.py`. What is kept of a training
is a LoRA as a file (`lora_file.py`) and its state, from which it goes on (`state_file.py`).
"""
