# Whether storage still holds what the catalog says.
{
    "name": "checksum-audit",
    "description": "Checksum audit of an experiment. Reads every file in storage and compares size and MD5 with the catalog; "
    "reports what is missing, different or unreadable, and files that the catalog does not know. The job fails when something is "
    "missing, different or unreadable; the report goes to analysis/ in any case.",
    "arguments": {
        "experimentName": {"required": True, "description": "Experiment to audit."},
        "filePath": {"default": "/dev/null", "description": "Not used."},
        "outputDirectory": {
            "type": "path",
            "default": "/tmp",
            "description": "The report is written here, below the job's id.",
        },
        "digests": {
            "type": "multiple_choice",
            "choices": ["yes", "no"],
            "default": "yes",
            "description": "Read all files and compare their MD5; no: compare sizes only.",
        },
        "loginFile": {
            "type": "path",
            "description": "Login file that the stage account may read; otherwise DM_LOGIN_FILE.",
        },
    },
    "stages": {
        "01-AUDIT": {
            "command": 'dm-process audit --output "$outputDirectory/$id/checksum-audit" --digests "$digests" '
            '--login-file "$loginFile" -- "$experimentName"',
            "artefacts": ["$outputDirectory/$id/**"],
        },
        "02-VERDICT": {
            "command": '[ "$nMissing $nDifferent $nUnreadable" = "0 0 0" ] || { echo "$experimentName: $nMissing missing, '
            '$nDifferent different, $nUnreadable unreadable of $nFiles files" >&2; exit 1; }',
        },
        "99-CLEAN": {
            "command": '[ "$jobStatus" = failed ] || rm -rf -- "$outputDirectory/$id"',
            "cleanup": True,
        },
    },
}
