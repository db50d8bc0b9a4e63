"""What each route does, as the permission table names it. A hub with a route that is missing here does not start.

Where several stand, any one of them will do. Before a view runs, its caller is asked for the right that the action
takes (security.py); what depends on the repo or the task is asked by the view, once it has found it.
"""

from collections.abc import Mapping
from types import MappingProxyType

from graft.hub.registry.access.permissions import Action

ROUTE_ACTIONS: Mapping[str, tuple[Action, ...]] = MappingProxyType(
    {
        "static": (Action.HUB_READ,),
        # graft's own API (api.py)
        "api.openapi": (Action.HUB_READ,),
        "api.health": (Action.HUB_READ,),
        "api.search": (Action.HUB_READ,),
        "api.adapter": (Action.REPO_READ,),
        "api.resolve": (Action.REPO_READ,),
        "api.history": (Action.REPO_READ,),
        "api.promote": (Action.REPO_WRITE,),
        "api.rollback": (Action.REPO_WRITE,),
        "api.tasks": (Action.HUB_READ,),
        "api.task": (Action.HUB_READ,),
        "api.add_task": (Action.TASK_CHANGE,),
        "api.set_task_owners": (Action.TASK_CHANGE,),
        "api.task_data": (Action.HUB_READ,),
        "api.leaderboard": (Action.HUB_READ,),
        "api.evaluations": (Action.REPO_READ,),
        "api.evaluation": (Action.REPO_READ,),
        "api.add_evaluation": (Action.SCORE_MEASURE, Action.SCORE_CLAIM),
        "api.list_bases": (Action.HUB_READ,),
        "api.add_base": (Action.BASE_RECORD, Action.BASE_CLAIM),
        # The Hugging Face protocol (huggingface/)
        "protocol.auth_check": (Action.REPO_READ,),
        "protocol.auth_check_write": (Action.REPO_WRITE,),
        "protocol.create_repo": (Action.REPO_CREATE,),
        "protocol.delete_repo": (Action.REPO_DELETE,),
        "protocol.move_repo": (Action.REPO_MOVE,),
        "protocol.settings": (Action.REPO_WRITE,),
        "protocol.list_models": (Action.HUB_READ,),
        "protocol.model_info": (Action.REPO_READ,),
        "protocol.tree": (Action.REPO_READ,),
        "protocol.paths_info": (Action.REPO_READ,),
        "protocol.commits": (Action.REPO_READ,),
        "protocol.list_refs": (Action.REPO_READ,),
        "protocol.create_tag": (Action.REPO_WRITE,),
        "protocol.create_branch": (Action.REPO_WRITE,),
        "protocol.delete_ref": (Action.REPO_WRITE,),
        "protocol.resolve": (Action.REPO_READ,),
        "people.whoami": (Action.SELF_READ,),
        "people.user_overview": (Action.HUB_READ,),
        "people.organization_overview": (Action.HUB_READ,),
        "people.my_repositories": (Action.SELF_READ,),
        "people.repositories_of": (Action.SELF_READ,),
        "not_offered.list_nothing": (Action.HUB_READ,),
        "not_offered.feature_of_a_repo": (Action.REPO_READ,),
        "not_offered.repo_without_a_namespace": (Action.HUB_READ,),
        "not_offered.repo_of_another_kind": (Action.HUB_READ,),
        "not_offered.anything_else": (Action.HUB_READ,),
        "not_offered.git": (Action.HUB_READ,),
        "uploads.validate_yaml": (Action.HUB_READ,),
        "uploads.preupload": (Action.REPO_WRITE,),
        "uploads.commit": (Action.REPO_WRITE,),
        "lfs.batch": (Action.REPO_WRITE,),
        "lfs.upload": (Action.LINK_USE,),
        "lfs.part": (Action.LINK_USE,),
        "lfs.complete": (Action.LINK_USE,),
        "lfs.verify": (Action.REPO_WRITE,),
        # Pages (pages.py, forms.py, playground.py)
        "pages.browse": (Action.HUB_READ,),
        "pages.browse_json": (Action.HUB_READ,),
        "pages.person": (Action.HUB_READ,),
        "pages.adapter": (Action.REPO_READ,),
        "pages.tasks": (Action.HUB_READ,),
        "pages.task": (Action.HUB_READ,),
        "pages.task_json": (Action.HUB_READ,),
        "pages.compare": (Action.REPO_READ,),
        "pages.signin_page": (Action.HUB_READ,),
        "pages.sign_in": (Action.HUB_READ,),
        "pages.signout": (Action.HUB_READ,),
        "pages.publish": (Action.HUB_READ,),
        "pages.publish_upload": (Action.REPO_CREATE,),
        "pages.check_publish": (Action.ADAPTER_CHECK,),
        "pages.promote": (Action.REPO_WRITE,),
        "playground.page": (Action.HUB_READ,),
        "playground.answer_all": (Action.MODEL_ASK,),
        "playground.stream": (Action.MODEL_ASK,),
    }
)
