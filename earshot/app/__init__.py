"""The web page and its API: predict a clip, explain the prediction, browse the mistakes."""
