"""The page that `fastai_gradcam.app` builds: what visitors ask of a model, and how it looks."""
