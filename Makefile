# Everything starts here. Each target does its own set-up (contrib/setup.sh), and nothing when all is there.

PYTHON = .venv/bin/python3
ARGS =

.PHONY: help run test test-long fuzz sanitize check bench bench-quick man dist clean
.DEFAULT_GOAL = help

help:
	@echo 'make run         back up this project three times, browse the history, restore from it (SRC=DIR, KEEP=1)'
	@echo 'make test        the fast tests (ARGS="tests/test_x.py -k name")'
	@echo 'make test-long   the tests that take minutes, and deeper searches'
	@echo 'make fuzz        bytes from nowhere for all parsers (ARGS="--runs 1000000 gzip")'
	@echo 'make sanitize    tests of the C code under AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make check       style, types, layers'
	@echo 'make bench       speed, side by side with others: hours (ARGS="--help")'
	@echo 'make bench-quick the same with little data: minutes'
	@echo 'make man         the manual pages, in man/'
	@echo 'make dist        sdist and wheel, tried out in an empty environment'
	@echo 'make clean       remove what was built, and .venv'

run:
	@sh contrib/setup.sh run
	@sh contrib/demo.sh

test:
	@sh contrib/setup.sh test
	$(PYTHON) -m pytest -n 2 -m 'not long' $(ARGS)

test-long:
	@sh contrib/setup.sh test
	HYPOTHESIS_PROFILE=deep $(PYTHON) -m pytest -n 2 -m long $(ARGS)

sanitize:
	@sh contrib/sanitize.sh

fuzz:
	@sh contrib/setup.sh fuzz
	$(PYTHON) -m tests.fuzz $(ARGS)

check:
	@sh contrib/setup.sh dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports --no-cache
	if command -v shellcheck >/dev/null; then shellcheck contrib/*.sh .ci/run; fi

bench:
	@sh contrib/setup.sh bench
	$(PYTHON) -m bench $(ARGS)

bench-quick:
	@sh contrib/setup.sh bench
	$(PYTHON) -m bench --quick $(ARGS)

man:
	@sh contrib/setup.sh run
	$(PYTHON) contrib/manpages.py man

dist:
	@sh contrib/setup.sh dev
	sh contrib/dist.sh

clean:
	rm -rf build dist man .venv *.egg-info .*_cache .hypothesis histfs/_*.abi3.so
	find histfs tests bench -name __pycache__ -prune -exec rm -rf {} +
