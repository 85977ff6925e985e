"""What an import does not do; each in a fresh interpreter, and each check shown to be able to fail."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import write_mrc


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout.strip(), done.stderr


INITIALISED = "from hydra.core.global_hydra import GlobalHydra; print(GlobalHydra.instance().is_initialized())"


def test_importing_etsam_loads_neither_torch_nor_hydra_nor_lightning_nor_sam2():
    code = "import etsam, etsam.cli.main, sys; print({'torch', 'hydra', 'lightning', 'sam2'} & set(sys.modules))"
    assert run(code)[1] == "set()"


def test_importing_sam2_itself_initialises_hydra():
    assert run(f"import sam2; {INITIALISED}")[1] == "True"


def test_building_a_network_leaves_hydra_uninitialised():
    code = "from etsam.network.build import import_sam2; import_sam2(); import sam2.modeling.sam2_base; "
    assert run(code + INITIALISED)[1] == "False"


def test_building_a_network_keeps_the_hydra_of_the_caller():
    code = (
        "from hydra import initialize_config_dir, compose; import os; from etsam.paths import resource_path\n"
        "from etsam.network.build import import_sam2\n"
        "with initialize_config_dir(str(resource_path('configs')), version_base='1.3'):\n"
        "    import_sam2(); print(compose('predict').grid_interval)"
    )
    code = "from etsam.app import register_resolvers; register_resolvers()\n" + code
    assert run(code)[1] == "50"


@pytest.mark.parametrize(
    "module", ["etsam.inference.two_stage", "etsam.network.build", "etsam.normalize", "etsam.volume"]
)
def test_plain_inference_needs_no_lightning(module):
    assert run(f"import {module}, sys; print('lightning' in sys.modules)")[1] == "False"


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "mask.mrc"],
        ["threshold", "logits.mrc", "--at", "0"],
        ["postprocess", "mask.mrc", "out.mrc"],
        ["measure", "mask.mrc", "--mesh-format", "none", "--voxel-size", "20"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_that_run_no_network_start_without_torch_and_lightning(tmp_path, arguments):
    drawn = np.zeros((6, 20, 24), np.int8)
    drawn[:, 8:11, 2:-2] = 1
    write_mrc(tmp_path / "mask.mrc", drawn)
    write_mrc(tmp_path / "logits.mrc", drawn.astype(np.float32))
    code = f"import os; os.chdir({str(tmp_path)!r}); from etsam.cli.main import main; main({arguments}); import sys"
    status, said, complaint = run(f"{code}; print('loaded:', {{'torch', 'lightning'}} & set(sys.modules))")
    assert (status, said.splitlines()[-1]) == (0, "loaded: set()"), complaint


@pytest.mark.parametrize("arguments", [["threshold", "--at", "0"], ["measure"]], ids=lambda arguments: arguments[0])
def test_a_missing_file_among_several_is_told_before_anything_heavy_is_loaded(tmp_path, arguments):
    write_mrc(tmp_path / "there.mrc", np.ones((6, 20, 24), np.float32))
    code = f"import os; os.chdir({str(tmp_path)!r}); from etsam.cli.main import main; import sys\n"
    code += f"try: main({[*arguments[:1], 'there.mrc', 'missing.mrc', *arguments[1:]]})\n"
    code += "except SystemExit as left: print(left.code, {'scipy', 'pandas', 'torch'} & set(sys.modules))"
    status, said, complaint = run(code)
    assert (status, said) == (0, "1 set()")
    assert "missing.mrc" in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["there.mrc"]


def test_our_own_network_imports_sam2_as_the_builder_does():
    assert run(f"import etsam.network.voxel_sam2; {INITIALISED}")[1] == "False"


def test_only_the_builder_and_our_own_network_name_sam2():
    from etsam.paths import resource_path

    package = resource_path("etsam") if (resource_path("configs").parent / "etsam").exists() else None
    if package is None:
        pytest.skip("needs a checkout")
    importing = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(line.strip().startswith(("import sam2", "from sam2")) for line in path.read_text().splitlines())
    ]
    assert sorted(importing) == ["network/build.py", "network/voxel_sam2.py"]
