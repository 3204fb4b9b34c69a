"""Identity vectors: the distribution that they come from, and new ones that are far apart."""

from raypipe.vectors.distribution import Distribution as Distribution
from raypipe.vectors.distribution import Gaussian as Gaussian
from raypipe.vectors.distribution import class_means as class_means
from raypipe.vectors.distribution import fit as fit
from raypipe.vectors.sampling import Sampled as Sampled
from raypipe.vectors.sampling import sample as sample
