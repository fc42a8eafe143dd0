"""A page to try a model on, ready for a Hugging Face Space: push this folder with model.pkl, from learn.export()."""

from pathlib import Path

from fastai.vision.all import load_learner

from fastai_gradcam.app import build

here = Path(__file__).parent
learn = load_learner(here / "model.pkl")
page = build(learn, examples=sorted((here / "examples").glob("*.jpg")))

if __name__ == "__main__":
    page.launch()
