import pytest

from bridge.planes.deallocation import shares_still_allocated
from dra_v1.claims import ClaimError, ClaimProblem, ClaimRef

REF = ClaimRef("default", "train", "u1")


@pytest.mark.parametrize(
    "problem", [ClaimProblem.REPLACED, ClaimProblem.NOT_ALLOCATED, ClaimProblem.NOT_OURS]
)
def test_a_claim_that_is_no_more_has_no_shares(problem: ClaimProblem) -> None:
    assert shares_still_allocated(ClaimError(REF, problem, "gone"), "node-a") == frozenset()


@pytest.mark.parametrize("problem", [ClaimProblem.UNREACHABLE, ClaimProblem.FORBIDDEN, ClaimProblem.FAILED])
def test_an_error_that_proves_nothing_frees_nothing(problem: ClaimProblem) -> None:
    with pytest.raises(ValueError, match="proves nothing"):
        shares_still_allocated(ClaimError(REF, problem, "no answer"), "node-a")
