"""Verification: is an engine still the network that was trained?

compare     named arrays against named arrays (numpy only)
tolerances  how far a rung may part from another, and why
options     what to verify with
inputs      what is fed: images, an .npz or seeded noise
result      what verification gives, as values
expose      graphs that show their blocks' values
judge       the verdict on a rung, and the block to blame
rungs       the steps of the ladder, each as something that can be observed
locate      the first block at which two rungs part company
ladder      the climb: every rung against the one before and against the first
probes      what an engine must keep to whatever its weights are
subjects    the bundles that are verified
verifying   verify: a bundle's ladder and probes
failing     what failed, the clearest cause first
wording     figures as people read them
plots       the plots of the page, as SVG
page        the result as one page that needs nothing else
report      the result written beside the engine: JSON and the page
"""

from parnet_deploy.verify.compare import Comparison, OutputComparison, compare

__all__ = ["Comparison", "OutputComparison", "compare"]
