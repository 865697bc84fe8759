"""Training and recovery: are the jobs getting on, what breaks them, how soon are they back, and what did it cost."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import GREEN, RED, YELLOW, AnyPanel, Query, board, grown, label_variable, number, quantiles, timeline

_JOB = 'job=~"$job"'


def dashboard() -> Dashboard:
    """The dashboard `switchgear-training`."""
    return board(
        "switchgear-training",
        "Switchgear / Training and recovery",
        "Progress of training jobs, the faults that interrupt them, the time to be back and the work that is lost.",
        [label_variable("job", "switchgear_job_generation", "Jobs to show in the rows below the overview.")],
        [
            ("Overview", _overview()),
            ("Progress", _progress()),
            ("Where the time went", _time()),
            ("Recovery", _recovery()),
            ("Queue", _queue()),
        ],
    )


def _overview() -> list[AnyPanel]:
    return [
        number(
            "Jobs running",
            "Jobs in state RUNNING; those that recover or wait are not counted.",
            Query('sum(switchgear_jobs{state="RUNNING"}) or vector(0)'),
            unit="short",
        ),
        number(
            "Incidents open",
            "Faults of jobs that are being dealt with now.",
            Query("sum(switchgear_incidents_open)"),
            unit="short",
            steps=[(0, GREEN), (1, YELLOW)],
        ),
        number(
            "Oldest open incident",
            "How long the oldest open incident has been open. Restarts in place take seconds.",
            Query("max(switchgear_incident_open_seconds) or vector(0)"),
            unit="s",
            steps=[(0, GREEN), (60, YELLOW), (300, RED)],
        ),
        number(
            "Goodput",
            "Share of the job time that made steps which count, mean of the live jobs: 1 minus what faults, restarts and redone steps cost.",
            Query("avg(switchgear_job_goodput_ratio)"),
            unit="percentunit",
            decimals=1,
            steps=[(0, RED), (0.8, YELLOW), (0.95, GREEN)],
        ),
        number(
            "Time to recover",
            "Median over the chosen time from the fault to the first step that had not been done before.",
            Query(
                'histogram_quantile(0.5, sum by (le) (increase(switchgear_recovery_seconds_bucket{phase="first_new_step"}[$__range]))) > 0'
            ),
            unit="s",
            decimals=1,
        ),
        number(
            "Jobs failed",
            "Training jobs that ended as FAILED within the chosen time.",
            Query('sum(increase(switchgear_jobs_ended_total{state="FAILED", workload="TRAINING"}[$__range]))'),
            unit="short",
            decimals=0,
            steps=[(0, GREEN), (1, RED)],
        ),
    ]


def _progress() -> list[AnyPanel]:
    return [
        timeline(
            "Step",
            "The newest step of each job. It falls when a job resumes from a checkpoint, and stands still while nothing trains.",
            Query(f"max by (job) (switchgear_job_step{{{_JOB}}})", "{{job}}"),
            unit="short",
        ),
        timeline(
            "Steps a second",
            "New steps, and steps done again after a restart (these are work that was lost).",
            Query(
                f"sum by (job, kind) (rate(switchgear_job_steps_total{{{_JOB}}}[$__rate_interval]))", "{{job}} {{kind}}"
            ),
            unit="cps",
        ),
        timeline(
            "Goodput",
            "Share of each job's time so far that made steps which count.",
            Query(f"min by (job) (switchgear_job_goodput_ratio{{{_JOB}}})", "{{job}}"),
            unit="percentunit",
            max_value=1,
            steps=[(0, RED), (0.8, YELLOW), (0.95, GREEN)],
        ),
        timeline(
            "Generation",
            "The number of each job's attempt: every step up is a restart.",
            Query(f"max by (job) (switchgear_job_generation{{{_JOB}}})", "{{job}}"),
            unit="short",
        ),
        timeline(
            "Checkpoints",
            "Checkpoints on record by state. Only verified ones are handed out for a restart.",
            Query(f"sum by (state) (switchgear_checkpoints{{{_JOB}}})", "{{state}}"),
            unit="short",
            stacked=True,
        ),
        timeline(
            "Steps lost",
            "Share of the steps of the last hour that were done again.",
            Query(
                f'sum by (job) (increase(switchgear_job_steps_total{{kind="redone", {_JOB}}}[1h]))'
                f" / sum by (job) (increase(switchgear_job_steps_total{{{_JOB}}}[1h]))",
                "{{job}}",
            ),
            unit="percentunit",
            max_value=1,
        ),
    ]


def _time() -> list[AnyPanel]:
    gpu_seconds = f"switchgear_job_gpu_seconds_total{{{_JOB}}}"
    lost = f'switchgear_job_gpu_seconds_total{{bucket!~"productive|unknown|queue", {_JOB}}}'
    return [
        timeline(
            "GPU time by bucket",
            "Share of each hour that went to new steps, to checkpoints, and to each phase of a fault. docs/goodput.md says what is in which bucket.",
            Query(
                f"sum by (bucket) (increase({gpu_seconds}[1h])) / scalar(sum(increase({gpu_seconds}[1h])))",
                "{{bucket}}",
            ),
            unit="percentunit",
            width=12,
            stacked=True,
            max_value=1,
        ),
        timeline(
            "GPU hours lost",
            "GPU hours of each job that made no new step since its submission, without the queue.",
            Query(f"sum by (job) ({lost}) / 3600", "{{job}}"),
            unit="short",
            width=12,
        ),
        timeline(
            "GPUs at new steps, by account",
            "How many GPUs made new steps, mean of the last hour, by the account that their job is charged to. The jobs chosen above do not matter here.",
            # Jobs that ended within the hour have no information any more, and one that came again may have another account.
            Query(
                'sum by (account) (rate(switchgear_job_gpu_seconds_total{bucket="productive"}[1h]) * on (job) group_left (account)'
                " topk by (job) (1, max by (job, account) (max_over_time(switchgear_job_info[1h]))))",
                "{{account}}",
            ),
            unit="short",
            width=24,
            stacked=True,
        ),
    ]


def _recovery() -> list[AnyPanel]:
    return [
        timeline(
            "Incidents closed",
            "In each hour, by fault and what was decided.",
            Query(grown("switchgear_incidents_closed_total", "", "fault", "decision"), "{{fault}} {{decision}}"),
            unit="short",
            width=12,
        ),
        timeline(
            "How incidents ended",
            "In each hour: resolved by itself, or escalated to a person.",
            Query(grown("switchgear_incidents_closed_total", "", "state"), "{{state}}"),
            unit="short",
            width=12,
            stacked=True,
        ),
        timeline(
            "Time to recover, by phase",
            "From the fault until it was detected, the old ranks were stopped, the new ones started, the first step and the first new step, over"
            " the last hour.",
            *quantiles("switchgear_recovery_seconds", "", "phase", window="1h"),
            unit="s",
            width=12,
        ),
        timeline(
            "Age of open incidents",
            "How long each job's incident has been open. An alert is raised after five minutes.",
            Query(f"max by (job) (switchgear_incident_open_seconds{{{_JOB}}})", "{{job}}"),
            unit="s",
            width=12,
            steps=[(0, GREEN), (300, RED)],
        ),
    ]


def _queue() -> list[AnyPanel]:
    return [
        timeline(
            "Jobs by state",
            "Jobs that have not ended.",
            Query("sum by (state) (switchgear_jobs)", "{{state}}"),
            unit="short",
            stacked=True,
        ),
        timeline(
            "Jobs ended",
            "In each hour, by how they ended.",
            Query("sum by (workload, state) (increase(switchgear_jobs_ended_total[1h]))", "{{workload}} {{state}}"),
            unit="short",
            stacked=True,
        ),
        timeline(
            "Time in the queue",
            "From submission to placement, over the last hour.",
            *quantiles("switchgear_job_queue_seconds", "", window="1h"),
            unit="s",
        ),
    ]
