"""What the tests print: one line for each file, instead of a dot for each test."""

from collections import defaultdict

import pytest


class Report:
    def __init__(self):
        self.tests = defaultdict(int)
        self.seconds = defaultdict(float)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report):
        if report.passed:
            return ("passed" if report.when == "call" else "", "", "")
        return None

    def pytest_runtest_logreport(self, report):
        name = report.location[0]
        self.seconds[name] += report.duration
        self.tests[name] += report.when == "call" and report.passed

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.ensure_newline()
        for name, count in self.tests.items():
            terminalreporter.write_line(f"{name:<28} {count:>4} passed {self.seconds[name]:>6.1f} s")


def pytest_configure(config):
    config.pluginmanager.register(Report(), "one-line-for-each-file")
