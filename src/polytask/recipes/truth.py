"""A trained model against the truth of simulated data, over all rows and not the labelled alone."""

from __future__ import annotations

from collections.abc import Sequence

from polytask.errors import UsageError
from polytask.evaluate import AgainstTruth, against_truth
from polytask.fit import predict
from polytask.share import SharedModel
from polytask.suites import Stream


def measure(
    model: SharedModel,
    stream: Stream,
    tasks: Sequence[str] | None = None,
    batch_size: int = 4096,
    device: str = "cpu",
) -> dict[str, AgainstTruth]:
    """Return for each task how the model's probabilities differ from the stream's true ones.

        suite = suites.load("clicks")
        measure(model, suite.test[0])["conversion"].ratio  # 1 where there is no bias

    tasks: None: all of the model's. Outputs are logits, as those of every yes-or-no task here.

    Raises UsageError where nobody knows the truth.
    """
    names = model.tasks if tasks is None else tuple(tasks)
    truth = {} if stream.truth is None else stream.truth
    unknown = [name for name in names if name not in truth]
    if unknown:
        raise UsageError(
            f"measure: stream {stream.name!r} has no true probabilities of {', '.join(unknown)}; "
            "only simulated data has them, such as those of the suite clicks."
        )
    outputs = predict(model, stream, names, batch_size, device)
    return {
        name: against_truth(outputs[name].double().sigmoid().flatten(), truth[name])
        for name in names
    }
