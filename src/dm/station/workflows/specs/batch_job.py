# A program on the batch system for each file: a template to copy.
{
    "name": "batch-job",
    "description": "A program run on Grid Engine or Slurm for each input file. dm-batch-run submits it, waits, tells how it ended "
    "(also when it was killed or went over its limits), and goes on with the same batch job after a restart. What the program "
    "prints is in the record; what it writes into the job's directory goes to analysis/. A template: copy it and put your "
    "program in.",
    "arguments": {
        "experimentName": {
            "description": "Experiment whose analysis/ gets the results; without one they stay where they are."
        },
        "sharedDirectory": {
            "required": True,
            "type": "path",
            "description": "Directory that the execution hosts share; results are written here, below the job's id.",
        },
        "program": {
            "required": True,
            "type": "path",
            "description": "Program to run; it is given the file as last argument.",
        },
        "programArguments": {"description": "Words that the program is given before the file."},
        "batchEnvironment": {
            "type": "path",
            "description": "Shell file to source first, as settings.sh of a Grid Engine cell.",
        },
        "queue": {"description": "Queue (Grid Engine) or partition (Slurm)."},
        "walltime": {"description": "Longest time to run, e.g. 90m, 1h30m, 01:30:00."},
        "memory": {"description": "Memory of the whole job, e.g. 500M, 4G."},
        "slots": {"type": "int", "default": 1, "description": "Processor cores on one host."},
    },
    "stages": {
        "01-RUN": {
            "command": '[ -z "$batchEnvironment" ] || . "$batchEnvironment"; _file=$(realpath -- "$filePath"); '
            'mkdir -p -- "$sharedDirectory/$id/batch-job" && cd -- "$sharedDirectory/$id/batch-job" && dm-batch-run '
            '--directory "$sharedDirectory/$id" ${queue:+--queue "$queue"} ${walltime:+--walltime "$walltime"} '
            '${memory:+--memory "$memory"} --slots "$slots" -- "$program" $programArguments "$_file"',
            "parallelExec": True,
        },
        "90-PUBLISH": {
            "command": 'test -d "$sharedDirectory/$id"',
            "runIf": "$experimentName",
            "artefacts": ["$sharedDirectory/$id/batch-job/**"],
        },
        "99-CLEAN": {
            "command": '[ -z "$experimentName" ] || [ "$jobStatus" = failed ] || rm -rf -- "$sharedDirectory/$id"',
            "cleanup": True,
        },
    },
}
