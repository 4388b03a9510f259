"""Requests made up from the service's own description, right ones and wrong ones: never a server error."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from hf_clip_domain.serving.app import create_app
from hf_clip_domain.serving.canary import draw_canary
from hf_clip_domain.serving.settings import Settings

_EXAMPLES = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
def test_no_request_makes_the_server_fail(folder, tmp_path):
    (tmp_path / "one.png").write_bytes(draw_canary(0))
    app = create_app(Settings(model=folder, gallery=str(tmp_path), max_items=16))
    statuses = {}
    for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
        operation = found.ok()
        if operation.path == "/admin/reload":  # each would load the model anew
            continue
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode is GenerationMode.NEGATIVE and operation.method == "get":  # nothing to get wrong
                continue

            @given(case=operation.as_strategy(generation_mode=mode))
            @_EXAMPLES
            def ask(case):
                answer = case.call()
                late = answer.status_code == 504 and "x-request-timeout" in case.headers  # it asked for that
                assert answer.status_code < 500 or late, (case.as_curl_command(), answer.text)
                statuses.setdefault((case.operation.path, mode.value), []).append(answer.status_code)

            ask()
    assert sum(map(len, statuses.values())) > 150
    # The description and the service agree: most wrong requests are refused (a field that OpenAI's clients may add, or a
    # query that nobody reads, is not), and right ones are answered.
    wrong = [status for (_, mode), found in statuses.items() if mode == "negative" for status in found]
    assert sum(status >= 400 for status in wrong) > 0.7 * len(wrong)
    assert 200 in statuses["/gallery/remove", "positive"] and 200 in statuses["/search", "positive"]
