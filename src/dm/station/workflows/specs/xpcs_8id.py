# The XPCS pipeline of 8-ID as published: GridFTP to the cluster, metadata, qsub, watched with qacct, GridFTP back.
{
    "name": "xpcs-8id",
    "description": "The XPCS pipeline of 8-ID at the APS, as published. Prepare the environment, copy the raw file to the cluster "
    "by GridFTP, append metadata to it there, submit the correlation to Grid Engine by qsub, watch it with qacct, copy the result "
    "back by GridFTP. The result goes to analysis/; sgeJobId, sgeJobName and sgeExitStatus become keys of the job.",
    "arguments": {
        "experimentName": {
            "description": "Experiment whose analysis/ gets the results; without one they stay where they are."
        },
        "outputDirectory": {
            "type": "path",
            "default": "/tmp",
            "description": "Results are written here, below the job's id.",
        },
        "clusterUrl": {
            "required": True,
            "description": "Directory on the cluster as GridFTP calls it, gsiftp://host:port/path.",
        },
        "clusterDirectory": {
            "required": True,
            "type": "path",
            "description": "The same directory as the cluster's hosts call it.",
        },
        "batchEnvironment": {
            "type": "path",
            "description": "Shell file to source before qsub and qacct, settings.sh of the cell.",
        },
        "queue": {"default": "all.q", "description": "Queue of the cluster."},
        "rings": {"type": "int", "default": 8, "description": "Rings of equal q."},
        "frameTime": {"type": "float", "default": 1, "description": "Seconds from frame to frame."},
        "beamX": {"type": "float", "description": "Column of the rings' centre; otherwise the image's middle."},
        "beamY": {"type": "float", "description": "Row of the rings' centre; otherwise the image's middle."},
    },
    "stages": {
        # On the way the file has a plain name of our own: those of raw files may not survive URLs and job scripts.
        "01-PREPARE": {
            "command": 'set -e; _raw=$(realpath -e -- "$filePath"); _stem=$(basename -- "$_raw"); _stem="${_stem%.*}"; '
            'mkdir -p -- "$outputDirectory/$id/xpcs-8id"; ln -sfn -- "$_raw" "$outputDirectory/$id/.raw.h5"; '
            'echo "SGE queue: $queue"; '
            'echo "SGE job name: xpcs_$(printf %s "$_stem" | tr -c "[:alnum:]_" _ | cut -c 1-60)"; '
            'echo "Result: $_stem.xpcs.h5"',
            "outputVariableRegexList": [
                "SGE queue: (?P<sgeQueue>.*)",
                "SGE job name: (?P<sgeJobName>.*)",
                "Result: (?P<resultName>.*)",
            ],
        },
        "02-COPY": {
            "command": "globus-url-copy -create-dest -verify-checksum -restart -rst-retries 3 "
            '"file://$outputDirectory/$id/.raw.h5" "$clusterUrl/$id/raw.h5"',
        },
        "03-METADATA": {
            "command": 'dm-process xpcs-metadata --rings "$rings" -- "$clusterDirectory/$id/raw.h5" "frame_time:$frameTime" '
            '"beam_x:$beamX" "beam_y:$beamY" "run_owner:$owner" "result_name:$resultName"',
        },
        "04-SUBMIT": {
            "command": '[ -z "$batchEnvironment" ] || . "$batchEnvironment"; cd -- "$clusterDirectory/$id" && '
            'qsub -q "$sgeQueue" -N "$sgeJobName" -cwd -j y -o batch.log -b y '
            '"$(command -v dm-process)" xpcs-correlate raw.h5 result.h5',
            "outputVariableRegexList": ["Your job (?P<sgeJobId>[0-9]+)"],
        },
        # qacct knows a job once it has ended; until then it says so on standard error
        "05-WATCH": {
            "command": '[ -z "$batchEnvironment" ] || . "$batchEnvironment"; '
            'if qacct -j "$sgeJobId" 2>/dev/null; then echo "Batch job: ended"; else echo "Batch job: active"; fi',
            "outputVariableRegexList": [
                "Batch job: (?P<sgeState>.*)",
                "(?m)^exit_status +(?P<sgeExitStatus>[0-9]+)",
                "(?m)^failed +(?P<sgeFailed>[0-9]+)",
            ],
            "repeatPeriod": 2,
            "repeatUntil": '"$sgeState" == "ended"',
            "maxRepeats": 999999,
        },
        "06-VERDICT": {
            "command": 'cat -- "$clusterDirectory/$id/batch.log"; [ "$sgeFailed $sgeExitStatus" = "0 0" ] || { echo '
            '"Batch job $sgeJobId: exit status $sgeExitStatus, failed $sgeFailed" >&2; exit 1; }',
        },
        "07-BACK": {
            "command": "globus-url-copy -verify-checksum -restart -rst-retries 3 "
            '"$clusterUrl/$id/result.h5" "file://$outputDirectory/$id/.result.h5" && '
            'mv -- "$outputDirectory/$id/.result.h5" "$outputDirectory/$id/xpcs-8id/$resultName"',
        },
        "90-PUBLISH": {
            "command": 'test -d "$outputDirectory/$id"',
            "runIf": "$experimentName",
            "artefacts": ["$outputDirectory/$id/**"],
        },
        # a job that is stopped takes its batch job with it
        "99-CLEAN": {
            "command": 'if [ -n "$sgeJobId" ] && [ "$jobStatus" = aborted ]; then '
            '[ -z "$batchEnvironment" ] || . "$batchEnvironment"; qdel "$sgeJobId" || true; fi; '
            'rm -rf -- "$clusterDirectory/$id"; [ -z "$experimentName" ] || [ "$jobStatus" = failed ] || '
            'rm -rf -- "$outputDirectory/$id"',
            "cleanup": True,
        },
    },
}
