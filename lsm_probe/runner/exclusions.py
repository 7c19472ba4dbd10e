"""Why a sample is left out of a result without anything being broken."""

EMPTY, NO_THINKING = "empty response", "no thinking"
