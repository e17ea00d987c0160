"""`completion`: what makes a shell complete the commands and their options, to be put where the shell reads it."""

from __future__ import annotations

from typing import Literal


def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print what makes a shell complete these commands. No file is touched.

    bash: source <(trifle-otel completion bash), in ~/.bashrc.

    zsh: trifle-otel completion zsh > a folder of $fpath/_trifle-otel.

    fish: trifle-otel completion fish > ~/.config/fish/completions/trifle-otel.fish.

    Parameters
    ----------
    shell
        Which.
    """
    from trifle_otel.cli.app import make_app

    print(make_app().generate_completion(prog_name="trifle-otel", shell=shell))
    return 0
