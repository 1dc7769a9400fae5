# A file to another machine, perhaps something done there, and the result back.
{
    "name": "hpc-copy",
    "description": "Copy of a file to an HPC system and of the result back, by rsync or GridFTP. Both copies are verified by "
    "checksum at both ends; in between a command can be run there by ssh. Without a command the file itself comes back and is "
    "compared with the original. What came back goes to analysis/; what lies there stays there.",
    "arguments": {
        "experimentName": {
            "description": "Experiment whose analysis/ gets the results; without one they stay where they are."
        },
        "outputDirectory": {
            "type": "path",
            "default": "/tmp",
            "description": "Results are written here, below the job's id.",
        },
        "remoteUrl": {
            "required": True,
            "description": "Directory there: host:/path (rsync by ssh), rsync://host/module/path, gsiftp:// or ftp://host:port/path.",
        },
        "remoteHost": {"description": "Where remoteCommand is run by ssh."},
        "remoteDirectory": {"description": "The directory of remoteUrl as remoteHost calls it."},
        "remoteCommand": {"description": "Command to be run in the job's directory there; plain characters only."},
        "resultName": {"description": "Name of the file to fetch; otherwise that of the file that was sent."},
        "proxy": {"type": "path", "description": "Grid proxy for GridFTP."},
        "certificates": {"type": "path", "description": "Directory of trusted authorities for GridFTP."},
        "streams": {"type": "int", "default": 1, "description": "Parallel GridFTP streams."},
        "identity": {"type": "path", "description": "Key file for ssh."},
        "knownHosts": {"type": "path", "description": "File with the keys of hosts, for ssh."},
        "sshPort": {"type": "int", "description": "Port of ssh."},
    },
    "stages": {
        "01-THERE": {
            "command": 'dm-process copy --proxy "$proxy" --certificates "$certificates" --streams "$streams" '
            '--identity "$identity" --known-hosts "$knownHosts" --port "$sshPort" -- $filePath "$remoteUrl/$id/"',
            "retry": {"count": 2, "backoff": 5},
        },
        "02-COMPUTE": {
            "command": '[ -z "$remoteCommand" ] || ssh -o BatchMode=yes ${identity:+-i "$identity"} '
            '${knownHosts:+-o "UserKnownHostsFile=$knownHosts"} ${sshPort:+-p "$sshPort"} '
            '-- "$remoteHost" "cd $remoteDirectory/$id && $remoteCommand"',
        },
        "03-BACK": {
            "command": '_n="$resultName"; [ -n "$_n" ] || _n=$(basename -- "$filePath"); '
            'dm-process copy --proxy "$proxy" --certificates "$certificates" --streams "$streams" '
            '--identity "$identity" --known-hosts "$knownHosts" --port "$sshPort" -- "$remoteUrl/$id/$_n" "$outputDirectory/$id/hpc-copy/" && '
            '{ [ -n "$remoteCommand$resultName" ] || cmp -- "$filePath" "$outputDirectory/$id/hpc-copy/$_n"; }',
            "retry": {"count": 2, "backoff": 5},
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
