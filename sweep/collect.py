"""The results of a job, brought into the output folder: the files under names with its settings, and its texts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from . import names
from .errors import StoppedError
from .journal import Journal, Task
from .link import File
from .outcome import Outcome, Told, reports
from .text import plain, quoted
from .workflow import Prompt, title

FILES = "files"  # the folder below the output folder
PART = ".part"  # ends the names of files that are not whole
Save = Callable[[File, Path], Awaitable[None]]


async def collect(journal: Journal, task: Task, prompt: Prompt, outcome: Outcome, told: Told, save: Save) -> None:
    """Bring in what `outcome` names and write the job down as done. `save(file, path)` gets a file from the server."""
    folder = journal.folder / FILES
    # What a node reported is an output of it too, but not a result of the job.
    shown = [(node_id, text) for node_id, text in outcome.texts if text not in told.get(node_id, ())]
    count: Counter[str] = Counter()
    files = []
    try:
        folder.mkdir(exist_ok=True)
        for file in outcome.files:
            of = names.stem(file.filename)
            count[of] += 1
            name = names.file_name(task.number, task.settings, of, count[of], names.extension(file.filename))
            # Under its name only when it is whole.
            part = folder / f"{task.number:05}-{task.prompt_id}{PART}"
            await save(file, part)
            os.replace(part, folder / name)
            files.append((f"{FILES}/{name}", of))
        for node_id, text in shown:
            of = names.safe(title(prompt, node_id)) or "text"
            count[of] += 1
            name = names.file_name(task.number, task.settings, of, count[of], "txt")
            (folder / name).write_text(text, "utf-8", errors="replace")
            files.append((f"{FILES}/{name}", of))
    except OSError as error:
        raise StoppedError(f"{quoted(str(folder))} cannot be written: {plain(error.strerror or str(error))}.") from None
    texts = [(title(prompt, node_id), text) for node_id, text in shown]
    reported = [(title(prompt, node_id), text) for node_id, text in reports(told)]
    journal.done(task, outcome.seconds, files, texts, reported)
