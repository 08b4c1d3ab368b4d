"""Training: recipes and data in, a checkpoint out.

recipe      Recipe: what decides what a network learns, as data
recipes     the recipes that have a name: the paper's, and a quick one
settings    Settings: how it is carried out: precision, micro-batches, workers
processes   this process among those of a training (torchrun)
transforms  what a recipe does to an image (torchvision)
loader      which images every step takes: a function of seed, epoch and number
optimise    optimiser and schedule (timm)
batchnorm   batch normalisation over all processes' batches
task        what a training is given, who shares it and who is told
loop        the training loop
tally       losses added up on the device, looked at now and then
validate    the test after every epoch
state       TrainingState: what a resumed training goes on from, bit for bit
qat_options QatOptions: what a network is trained to be quantised to
qat         quantisation-aware training: fake quantisers behind the fold
record      RunRecord: what a run was asked for, and what came of it
run         a run's folder: begun, resumed, finished
files       files that are whole at every moment
metrics     what a run says of itself, and Observer, who is told
logs        CSV and TensorBoard
curves      a picture of the whole training

Nothing is imported here: the command line reads recipes, settings, options and metrics without
torch.
"""
