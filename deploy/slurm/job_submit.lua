-- Slurm's job_submit plugin (JobSubmitPlugins=lua): a word to whoever submits a script that runs torchrun. It changes and refuses no job.
-- Where there is a job_submit.lua already, take over `hint` and call it from there in the same way.

local function hint(job)
    local script = job.script
    if type(script) ~= "string" or script:find("switchgear", 1, true) then
        return
    end
    if script:find("torchrun", 1, true) or script:find("torch.distributed.run", 1, true) then
        slurm.log_user("switchgear: `srun switchgear run` takes torchrun's flags, and goes on from the last good checkpoint after a failure")
    end
end

function slurm_job_submit(job, partitions, uid)
    pcall(hint, job) -- whatever goes wrong here is no reason against a job
    return slurm.SUCCESS
end

function slurm_job_modify(job, record, partitions, uid)
    return slurm.SUCCESS
end
