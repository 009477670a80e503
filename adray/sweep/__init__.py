"""The only package that imports ray: plan, preflight, trial, driver."""
