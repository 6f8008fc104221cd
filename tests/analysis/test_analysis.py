from support import tool


def test_the_command(tmp_path):
    text = tool("analyze_model.py", "quickstart.yaml", "--height", 64, "--width", 96, cwd=tmp_path)
    assert "| backbone.bottom_up | 0.68 |" in text and "activations:" in text
