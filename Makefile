# Everything a newcomer needs is `make train` and `make test`; both set up .venv by themselves.
EXPERIMENT ?= pong-dqn
ARGS ?=
PYTHON ?= python3
EXTRAS := dev,wandb,peers,tianshou,carla,box2d,minatar
TORCH := $(shell grep '^torch==' constraints.txt)
READY := .venv/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help train test format lock
help: ## print this list
	@grep -hE '^[a-z]+: .*##' Makefile | sed 's/:[^#]*## /\t/' | expand -t 10

train: $(READY) ## train EXPERIMENT (default pong-dqn); options and KEY=VALUE in ARGS
	.venv/bin/rlagents train $(EXPERIMENT) $(ARGS)

test: $(READY) ## format check, lint, types, documentation, tests
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/pyright
	.venv/bin/mkdocs build --strict --quiet
	.venv/bin/pytest -n logical --maxprocesses 4 --dist worksteal

format: $(READY) ## rewrite the code as `make test` wants it
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

# torch comes first and alone: the pin alone decides its build, and nothing later may replace it.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, got " + sys.version + "; set PYTHON=") if sys.version_info < (3, 11) else None'
	@echo "Setting up .venv: once, for some minutes (PyTorch is large)"
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -qq $(TORCH) -c constraints.txt hatchling
	.venv/bin/pip install -qq --no-build-isolation -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# What a fresh environment resolves to today, within the ranges of pyproject.toml. To move torch, edit its line first.
lock: ## pin the newest versions anew in constraints.txt
	@set -e; fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(PYTHON) -m venv "$$fresh"; \
	"$$fresh/bin/pip" install -qq $(TORCH) hatchling; \
	"$$fresh/bin/pip" install -qq --no-build-isolation -e '.[$(EXTRAS)]'; \
	{ echo "# Written by \`make lock\`: the versions that \`make train\` and \`make test\` install."; \
	"$$fresh/bin/pip" freeze --all --exclude-editable --exclude pip \
	| sed -E 's/^torch(==| @ ).*/$(TORCH)/' | grep -vE '^(nvidia-|cuda-|triton)'; } > "$$fresh/constraints.txt"; \
	cp "$$fresh/constraints.txt" constraints.txt
