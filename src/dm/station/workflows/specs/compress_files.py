# Compressed copies of files, verified.
{
    "name": "compress-files",
    "description": "Compressed copies of files, by gzip or zstd. Each is unpacked again and compared before the stage succeeds; "
    "the files themselves stay as they are. The copies go to analysis/.",
    "arguments": {
        "experimentName": {
            "description": "Experiment whose analysis/ gets the results; without one they stay where they are."
        },
        "outputDirectory": {
            "type": "path",
            "default": "/tmp",
            "description": "Results are written here, below the job's id.",
        },
        "method": {"type": "multiple_choice", "choices": ["gzip", "zstd"], "default": "gzip", "description": "How."},
        "level": {"type": "int", "description": "Effort: gzip 1 to 9 (6), zstd 1 to 19 (3)."},
    },
    "stages": {
        "01-COMPRESS": {
            "command": 'dm-process compress --output "$outputDirectory/$id/compress-files" --within "$experimentFilePath" '
            '--method "$method" --level "$level" -- $filePath',
            "parallelExec": True,
        },
        "90-PUBLISH": {
            "command": 'test -d "$outputDirectory/$id"',
            "runIf": "$experimentName",
            "artefacts": ["$outputDirectory/$id/**"],
        },
        "99-CLEAN": {
            "command": '[ -z "$experimentName" ] || [ "$jobStatus" = failed ] || rm -rf -- "$outputDirectory/$id"',
            "cleanup": True,
        },
    },
}
