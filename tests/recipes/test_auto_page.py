"""The snippet of docs/auto.md runs as it stands."""

import re
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "auto.md").read_text()


def test_the_snippet_runs(capsys) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(snippet, "docs/auto.md", "exec"), {"__name__": "page"})
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 + 1 + 1
    assert said[-1] == "1 torch.Size([8, 1])"
