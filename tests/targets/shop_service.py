"""What shop.py serves, with its books; imported when the library is patched, if it is."""

import os
import socket
import threading
import time

books = []


def start(collector, service, instance):
    """Starts the agent, and returns the application."""
    from skywalking import agent, config

    config.init(
        agent_collector_backend_services=collector,
        agent_protocol="grpc",
        agent_name=service,
        agent_instance_name=instance,
        agent_profile_active=False,
        agent_log_reporter_active=False,
        agent_meter_reporter_active=False,
        agent_trace_reporter_max_buffer_size=100_000,
    )
    agent.start()

    from flask import Flask

    app = Flask(__name__)
    app.add_url_rule("/slow", view_func=slow)
    app.add_url_rule("/other", view_func=other)
    return app


def booked(function):
    """Writes each call of it down."""

    def call(*arguments):
        from skywalking.trace.context import get_context

        segment = get_context().segment
        begin, cpu = time.time_ns(), time.thread_time_ns()
        try:
            return function(*arguments)
        finally:
            cpu, end = time.thread_time_ns() - cpu, time.time_ns()
            books.append(
                {
                    "segment": str(segment.segment_id),
                    "function": function.__name__,
                    "begin_ns": begin,
                    "end_ns": end,
                    "cpu_ns": cpu,
                    "trace": str(segment.related_traces[0]),
                    "pid": os.getpid(),
                }
            )

    return call


def spin(seconds):
    """Python code for so long by the thread's own clock: others may run beside."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@booked
def burn_a():
    """On the CPU."""
    spin(0.12)


@booked
def wait_a():
    """Waits, and lets others go on."""
    time.sleep(0.3)


@booked
def wait_b():
    """The same for shorter, for an answer that does not come: a thread polls."""
    mine, other = socket.socketpair()
    with mine, other:
        mine.settimeout(0.15)
        try:
            mine.recv(1)
        except TimeoutError:
            pass


def child_work():
    """Belongs to the request, and is no part of its greenlet."""
    time.sleep(0.2)


def foreign_wait():
    """Of another request."""
    time.sleep(0.5)


def slow():
    """What is profiled."""
    child = threading.Thread(target=child_work)
    child.start()
    burn_a()
    wait_a()
    wait_b()
    child.join()
    return "slow"


def other():
    """What is beside it."""
    foreign_wait()
    return "other"
