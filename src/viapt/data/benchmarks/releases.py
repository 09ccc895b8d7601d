"""The data sets that the benchmark tasks are made of: who made them, under which licence, where a user gets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Release:
    """A published data set.

    Attributes:
        title: what it is called.
        licence: in words; "not stated" where its authors give none.
        citation: the publication to cite.
        source: where a user gets the original files.
        layouts: original layouts that are read, in order of preference, each with the names that its folder may have.
    """

    title: str
    licence: str
    citation: str
    source: str
    layouts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


RESEARCH = "non-commercial research"

RELEASES = {
    "caltech101": Release(
        "Caltech-101",
        "CC-BY-4.0",
        "Fei-Fei, Fergus and Perona, CVIU 106, 2007",
        "https://data.caltech.edu/records/mzrjq-6wc02 (101_ObjectCategories.tar.gz)",
        {"torchvision": ("caltech101/101_ObjectCategories", "101_ObjectCategories")},
    ),
    "cifar10": Release(
        "CIFAR-10",
        "not stated",
        "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        "https://www.cs.toronto.edu/~kriz/cifar.html (binary or Python version)",
        {"torchvision": ("cifar-10-batches-bin", "cifar-10-batches-py")},
    ),
    "cifar100": Release(
        "CIFAR-100",
        "not stated",
        "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        "https://www.cs.toronto.edu/~kriz/cifar.html (binary or Python version)",
        {"torchvision": ("cifar-100-binary", "cifar-100-python")},
    ),
    "clevr": Release(
        "CLEVR v1.0",
        "CC-BY-4.0",
        "Johnson et al., CVPR 2017, arXiv 1612.06890",
        "https://cs.stanford.edu/people/jcjohns/clevr/ (CLEVR_v1.0.zip)",
        {"clevr": ("clevr/CLEVR_v1.0", "CLEVR_v1.0")},
    ),
    "cub200": Release(
        "Caltech-UCSD Birds-200-2011",
        RESEARCH,
        "Wah et al., CNS-TR-2011-001, 2011",
        "https://data.caltech.edu/records/65de6-vp158 (CUB_200_2011.tgz)",
        {"fgvc-json": ("CUB_200_2011", "CUB"), "cub": ("CUB_200_2011", "CUB")},
    ),
    "dmlab": Release(
        "DMLab frames",
        "not stated",
        "Beattie et al., arXiv 1612.03801; Zhai et al., arXiv 1910.04867",
        "https://storage.googleapis.com/dmlab-vtab/dmlab.tar.gz (viapt data extract)",
        {"dmlab": ("dmlab", "DMLab")},
    ),
    "dogs": Release(
        "Stanford Dogs",
        RESEARCH,
        "Khosla et al., FGVC workshop, CVPR 2011",
        "http://vision.stanford.edu/aditya86/ImageNetDogs/ (images.tar, lists.tar)",
        {
            "fgvc-json": ("stanford_dogs", "StanfordDogs", "Stanford_Dogs"),
            "dogs": ("stanford_dogs", "StanfordDogs", "Stanford_Dogs"),
        },
    ),
    "dsprites": Release(
        "dSprites",
        "that of its repository",
        "Matthey et al., 2017; Higgins et al., ICLR 2017",
        "https://github.com/google-deepmind/dsprites-dataset (the .npz file)",
        {"dsprites": ("dsprites", "dsprites-dataset", ".")},
    ),
    "dtd": Release(
        "Describable Textures (DTD)",
        RESEARCH,
        "Cimpoi et al., CVPR 2014",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/ (dtd-r1.0.1.tar.gz)",
        {"torchvision": ("dtd/dtd",)},
    ),
    "eurosat": Release(
        "EuroSAT, RGB",
        "MIT",
        "Helber et al., JSTARS 12, 2019, arXiv 1709.00029",
        "https://github.com/phelber/EuroSAT (EuroSAT.zip)",
        {"torchvision": ("eurosat/2750",)},
    ),
    "flowers102": Release(
        "Oxford Flowers-102",
        "not stated",
        "Nilsback and Zisserman, ICVGIP 2008",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ (102flowers.tgz, imagelabels.mat, setid.mat)",
        {
            "fgvc-json": ("OxfordFlower", "oxford_flowers", "flowers-102"),
            "torchvision": ("flowers-102",),
        },
    ),
    "food101": Release(
        "Food-101",
        "not stated",
        "Bossard, Guillaumin and Van Gool, ECCV 2014",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/ (food-101.tar.gz)",
        {"torchvision": ("food-101",)},
    ),
    "gtsrb": Release(
        "German Traffic Signs (GTSRB)",
        "that of its page",
        "Stallkamp et al., Neural Networks 32, 2012",
        "https://benchmark.ini.rub.de/ (GTSRB-Training_fixed, GTSRB_Final_Test_Images and GTSRB_Final_Test_GT)",
        {"torchvision": ("gtsrb",)},
    ),
    "kitti": Release(
        "KITTI, 2D objects",
        "CC-BY-NC-SA-3.0",
        "Geiger, Lenz and Urtasun, CVPR 2012",
        "https://www.cvlibs.net/datasets/kitti/eval_object.php (left colour images, training labels, development kit)",
        {"kitti": ("Kitti/raw", "Kitti", "kitti")},
    ),
    "nabirds": Release(
        "NABirds",
        RESEARCH,
        "Van Horn et al., CVPR 2015",
        "https://dl.allaboutbirds.org/nabirds (nabirds.tar.gz, after accepting its terms)",
        {"fgvc-json": ("nabirds",), "nabirds": ("nabirds",)},
    ),
    "patch-camelyon": Release(
        "PatchCamelyon",
        "CC0-1.0",
        "Veeling et al., MICCAI 2018, arXiv 1806.03962",
        "https://github.com/basveeling/pcam (six .h5.gz files, to be decompressed)",
        {"torchvision": ("pcam",)},
    ),
    "pets": Release(
        "Oxford-IIIT Pet",
        "CC-BY-SA-4.0",
        "Parkhi et al., CVPR 2012",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/ (images.tar.gz, annotations.tar.gz)",
        {"torchvision": ("oxford-iiit-pet",)},
    ),
    "resisc45": Release(
        "NWPU-RESISC45",
        "not stated",
        "Cheng, Han and Lu, Proc. IEEE 105, 2017, arXiv 1703.00121",
        "its authors' page, by hand (NWPU-RESISC45.rar or .zip)",
        {"resisc45": ("NWPU-RESISC45", "resisc45/NWPU-RESISC45", "NWPU-RESISC45.zip", "resisc45", "RESISC45")},
    ),
    "retinopathy": Release(
        "Diabetic Retinopathy Detection",
        "rules of the Kaggle competition",
        "Kaggle and EyePacs, 2015",
        "https://www.kaggle.com/c/diabetic-retinopathy-detection (after accepting its rules)",
        {"retinopathy": ("diabetic_retinopathy", "diabetic-retinopathy-detection", "retinopathy")},
    ),
    "smallnorb": Release(
        "SmallNORB",
        RESEARCH,
        "LeCun, Huang and Bottou, CVPR 2004",
        "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/ (six .mat.gz files)",
        {"smallnorb": ("smallnorb", "norb-v1.0-small", "small_norb")},
    ),
    "stanford-cars": Release(
        "Stanford Cars",
        RESEARCH,
        "Krause et al., 3DRR workshop, ICCV 2013",
        "no longer at its authors' page; copies with devkit, cars_train, cars_test, cars_test_annos_withlabels.mat",
        {
            "fgvc-json": ("stanford_cars", "StanfordCars", "Stanford_Cars"),
            "cars": ("stanford_cars", "StanfordCars", "Stanford_Cars"),
        },
    ),
    "sun397": Release(
        "SUN397",
        RESEARCH,
        "Xiao et al., CVPR 2010",
        "https://vision.princeton.edu/projects/2010/SUN/ (SUN397.tar.gz; often out of reach)",
        {"torchvision": ("SUN397",)},
    ),
    "svhn": Release(
        "Street View House Numbers, cropped",
        RESEARCH,
        "Netzer et al., NIPS workshop 2011",
        "http://ufldl.stanford.edu/housenumbers/ (train_32x32.mat, test_32x32.mat)",
        {"torchvision": ("svhn", "SVHN", ".")},
    ),
}
