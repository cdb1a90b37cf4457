"""Test helpers of `edgeroute.testing`: scripted models, clouds and links; contracts of models and endpoints of other packages."""
