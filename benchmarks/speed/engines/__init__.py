"""The engines that are measured: this one, and the alternatives, each behind the interface of `workload.Engine`."""
