"""python -m llmrecipes.migrate OLD.yaml > NEW.yaml"""

from llmrecipes.migrate import main

main()
