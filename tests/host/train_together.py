"""One process of several that train one LoRA: `train_together.py RANK SIZE FILE`, its neighbours on a free port. Writes
what it has learned."""

import os
import sys

import torch


def main() -> None:
    rank, size, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size)
    from guidekit.tests.host.test_together import learned

    torch.save(learned(sys.argv[4]), file)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    import guidekit.demo.own_folders  # noqa: F401  before anything else of the host's is imported

    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    main()
