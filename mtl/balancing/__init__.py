"""Task balancing: loss weights and update directions from losses and gradients, as pure functions (see `contract`).

from losses       weighting (Equal, Fixed, RLW)  uncertainty (UW, IMTL-L)  log_losses (GLS, SI)  dwa  stch  famo
from a Gramian    mgda  pcgrad  gradvac  cagrad  imtl_g  aligned_mtl  nash_mtl  fairgrad  upgrad  dualproj
                  conflict_free (ConFIG)  gradnorm  db_mtl  pcd
from gradients    graddrop  excess_mtl  moco  db_mtl with memory
around another    cr_mogm
mathematics       gramian  active  preference  complementarity  dual_cone  fairness  eigen
"""
