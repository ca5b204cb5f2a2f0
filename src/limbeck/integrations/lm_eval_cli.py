"""``python -m limbeck.integrations.lm_eval_cli``: lm-eval's own command line, with the model ``limbeck`` in it."""

from __future__ import annotations

import sys

from limbeck.errors import ConfigError, LimbeckError

__all__ = ["main"]


def main() -> int:
    """Run lm-eval on ``sys.argv``.

    Returns:
        The exit code; what was given wrong to the model is one sentence and 2.
    """
    try:
        try:
            from lm_eval.__main__ import cli_evaluate

            import limbeck.integrations.lm_eval  # noqa: F401 - registers the model
        except ImportError as error:
            raise ConfigError(f"lm-eval is not installed ({error}): pip install 'limbeck[harness]'") from None
        cli_evaluate()
    except LimbeckError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
