"""What all tests run under."""

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# No deadlines: the machines that run this are shared, and a case's time says nothing.
settings.register_profile(
    "dataporter", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("dataporter")
