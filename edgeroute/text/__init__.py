"""Texts in OpenAI's JSON, as models on the device and endpoints use it: requests, replies, events. No I/O."""
